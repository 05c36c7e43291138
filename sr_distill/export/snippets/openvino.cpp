// $name, x$scale. Needs $file and its .bin beside it.
// In:  $input
// Out: $output
#include <openvino/openvino.hpp>

class Upscaler {
public:
    explicit Upscaler(const std::string& path, const std::string& device = "AUTO")
        : request_(ov::Core().compile_model(path, device).create_infer_request()) {}

    ov::Tensor upscale($ctype* image, size_t width, size_t height) {
        request_.set_input_tensor(ov::Tensor(ov::element::$ovtype, $shape_cpp, image));
        request_.infer();
        return request_.get_output_tensor();   // valid until the next call
    }

private:
    ov::InferRequest request_;
};

// $name, x$scale. Needs $file and its .bin; link with ncnn.
// In:  $input
// Out: $output
#include "net.h"

class Upscaler {
public:
    Upscaler(const char* param, const char* bin, bool gpu) {
        net_.opt.use_vulkan_compute = gpu;
        loaded_ = net_.load_param(param) == 0 && net_.load_model(bin) == 0;
    }
    bool loaded() const { return loaded_; }

    // A bitmap with rows of width pixels: $ncnn_pixels
    bool upscale(const unsigned char* pixels, int width, int height, ncnn::Mat& sr) {
        const float to_unit[3] = {1 / 255.f, 1 / 255.f, 1 / 255.f}, to_bytes[3] = {255.f, 255.f, 255.f};
        ncnn::Mat image = ncnn::Mat::from_pixels(pixels, ncnn::Mat::$ncnn_format, width, height);
        image.substract_mean_normalize(nullptr, to_unit);
        ncnn::Extractor extractor = net_.create_extractor();
        if (extractor.input("in0", image) != 0 || extractor.extract("out0", sr) != 0) return false;
        sr.substract_mean_normalize(nullptr, to_bytes);
        return true;   // sr.to_pixels(bytes, ncnn::Mat::$ncnn_format)
    }

private:
    ncnn::Net net_;
    bool loaded_;
};

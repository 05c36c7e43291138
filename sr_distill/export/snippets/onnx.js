// $name, x$scale. npm install onnxruntime-web
// In:  $input
// Out: $output
import * as ort from "onnxruntime-web";

const session = await ort.InferenceSession.create("$file", { executionProviders: ["webgpu", "wasm"] });

/** $array of width x height pixels, in the order above; gives the same of the upscaled image. */
export async function upscale(image, width, height) {
  const { sr } = await session.run({ image: new ort.Tensor("$dtype", image, $shape_js) });
  return sr.data;
}

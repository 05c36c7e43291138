// $name, x$scale. Gradle: implementation("org.pytorch:executorch-android:1.+")
// In:  $input
// Out: $output
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

class Upscaler(path: String) {                                     // a file: copy $file out of the assets first
    private val module = Module.load(path)

    /** The values in exactly the order above: memory is read in that order, whatever a tensor's strides say. */
    fun upscale(image: FloatArray): FloatArray =
        module.forward(EValue.from(Tensor.fromBlob(image, $shape_fixed)))[0].toTensor().dataAsFloatArray
}

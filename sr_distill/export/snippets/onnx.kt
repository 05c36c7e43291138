// $name, x$scale. Gradle: implementation("com.microsoft.onnxruntime:onnxruntime-android:1.+")
// In:  $input
// Out: $output
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.nio.$buffer

class Upscaler(model: ByteArray) : AutoCloseable {                 // assets.open("$file").readBytes()
    private val environment = OrtEnvironment.getEnvironment()
    private val session: OrtSession = environment.createSession(model, OrtSession.SessionOptions())

    /** A direct buffer in native order, rewound, of width x height pixels. */
    fun upscale(image: $buffer, width: Long, height: Long): $buffer =
        OnnxTensor.createTensor(environment, image, $shape$type).use { input ->
            session.run(mapOf("image" to input)).use { result ->
                (result[0] as OnnxTensor).$getter
            }
        }

    override fun close() = session.close()
}

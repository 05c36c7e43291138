// $name, x$scale. Gradle: implementation("com.google.ai.edge.litert:litert:1.+")
// In:  $input
// Out: $output
import java.nio.ByteBuffer
import org.tensorflow.lite.Interpreter

class Upscaler(model: ByteBuffer, threads: Int = 4) : AutoCloseable {   // a memory-mapped $file
    private val interpreter = Interpreter(model, Interpreter.Options().setNumThreads(threads))

    /** Direct buffers in native order, of the sizes above. */
    fun upscale(image: ByteBuffer, sr: ByteBuffer) = interpreter.run(image, sr)

    override fun close() = interpreter.close()
}

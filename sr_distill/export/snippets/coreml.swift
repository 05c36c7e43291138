// $name, x$scale. Drag $file into Xcode.
// In:  $input
// Out: $output
import CoreML

final class Upscaler {
    private let model: MLModel

    init(contentsOf compiled: URL, units: MLComputeUnits = .all) throws {   // Bundle.main.url(forResource: "$stem", withExtension: "mlmodelc")
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units
        model = try MLModel(contentsOf: compiled, configuration: configuration)
    }

    func upscale(_ image: MLMultiArray) throws -> MLMultiArray {
        let input = try MLDictionaryFeatureProvider(dictionary: ["image": image])
        return try model.prediction(from: input).featureValue(for: "sr")!.multiArrayValue!
    }
}

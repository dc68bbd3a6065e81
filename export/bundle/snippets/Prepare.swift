// Prepares an image for the model files of this folder exactly as training did. It needs Swift's standard library and
// Foundation only: on iOS, draw the UIImage, whose imageOrientation is then applied, into an 8-bit sRGB bitmap context
// and take its bytes. samples.json and samples.bin beside this file have what every step must give.
//
//     let input = Prepare.normalise(Prepare.crop(Prepare.resize(Prepare.decode(width, height, rgba))))
//     // for onnxruntime: ORTValue(tensorData: ..., elementType: .float, shape: Prepare.shape)

import Foundation

/// Numbers 0...255 in rows from the top, the channels of a pixel side by side.
struct Picture {
    let width: Int, height: Int, channels: Int
    var values: [Int]

    init(_ width: Int, _ height: Int, _ channels: Int) {
        (self.width, self.height, self.channels) = (width, height, channels)
        values = [Int](repeating: 0, count: width * height * channels)
    }
}

enum Prepare {
    // From manifest.json, `preprocessing` and `input` of @FILE@.
    static let shorter = @SHORTER@ // side in pixels to which the shorter side is resized; 0: both sides become `side`
    static let side = @SIDE@ // side of the crop in pixels
    static let size = @SIZE@ // side of the network's input in pixels
    static let bilinear = @BILINEAR@ // else bicubic
    static let channels = @CHANNELS@ // red, green and blue; or gray
    static let channelsLast = @CHANNELS_LAST@
    static let pixels = @PIXELS@ // whether the file takes whole numbers 0...255
    static let mean: [Double] = [@MEAN@]
    static let std: [Double] = [@STD@]
    static let shape = [@SHAPE@]

    /// Step 1: colours of an upright image, four bytes a pixel (red, green, blue, alpha). Transparency is not applied.
    static func decode(_ width: Int, _ height: Int, _ rgba: [UInt8]) -> Picture {
        var out = Picture(width, height, channels)
        for i in 0..<width * height {
            let r = Int(rgba[4 * i]), g = Int(rgba[4 * i + 1]), b = Int(rgba[4 * i + 2])
            if channels == 3 {
                out.values[3 * i] = r
                out.values[3 * i + 1] = g
                out.values[3 * i + 2] = b
            } else {
                out.values[i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16
            }
        }
        return out
    }

    /// Step 2: the antialiased resize of Pillow, across and then down, with whole numbers in between.
    static func resize(_ x: Picture) -> Picture {
        let least = min(x.width, x.height)
        let width = shorter == 0 ? side : shorter * x.width / least
        let height = shorter == 0 ? side : shorter * x.height / least
        let across = width == x.width ? x : resizeLines(x, width, true)
        return height == x.height ? across : resizeLines(across, height, false)
    }

    private static func resizeLines(_ x: Picture, _ size: Int, _ across: Bool) -> Picture {
        let old = across ? x.width : x.height
        var out = across ? Picture(size, x.height, x.channels) : Picture(x.width, size, x.channels)
        // Values from one pixel to the next along a line.
        let step = across ? x.channels : x.width * x.channels
        let scale = Double(old) / Double(size), wide = max(scale, 1), reach = (bilinear ? 1 : 2) * wide
        for i in 0..<size {
            let center = (Double(i) + 0.5) * scale
            let start = max(0, Int(center - reach + 0.5)), end = min(old, Int(center + reach + 0.5))
            let weights = (start..<end).map { weigh((Double($0) - center + 0.5) / wide) }
            let total = weights.reduce(0, +)
            // Pillow's weights are whole numbers of 22 bits behind the point, halves away from zero.
            let fixed = weights.map { (weight: Double) -> Int in
                let exact = weight / total * Double(1 << 22)
                return Int(exact + (exact < 0 ? -0.5 : 0.5))
            }
            for line in 0..<(across ? x.height : x.width) {
                let from = across ? line * x.width * x.channels : line * x.channels
                let to = across ? (line * size + i) * x.channels : (i * x.width + line) * x.channels
                for c in 0..<x.channels {
                    var sum = 1 << 21
                    for k in 0..<fixed.count { sum += x.values[from + (start + k) * step + c] * fixed[k] }
                    out.values[to + c] = min(255, max(0, sum >> 22))
                }
            }
        }
        return out
    }

    private static func weigh(_ distance: Double) -> Double {
        bilinear ? max(0, 1 - abs(distance)) : cubic(abs(distance), -0.5)
    }

    private static func cubic(_ x: Double, _ a: Double) -> Double {
        if x < 1 { return ((a + 2) * x - (a + 3)) * x * x + 1 }
        return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0
    }

    /// Step 3: the middle. Halves go to the even number, as in Python.
    static func crop(_ x: Picture) -> Picture {
        let left = Int((Double(x.width - side) / 2).rounded(.toNearestOrEven))
        let top = Int((Double(x.height - side) / 2).rounded(.toNearestOrEven))
        var out = Picture(side, side, x.channels)
        for row in 0..<side {
            let from = ((row + top) * x.width + left) * x.channels
            for i in 0..<side * x.channels { out.values[row * side * x.channels + i] = x.values[from + i] }
        }
        return out
    }

    /// Step 4: torch's bicubic to the network's side (a = -0.75, not antialiased), mean and deviation, layout.
    static func normalise(_ x: Picture) -> [Float] {
        var out = [Float](repeating: 0, count: size * size * channels)
        let rows = (0..<size).map(taps)
        for row in 0..<size {
            for column in 0..<size {
                for c in 0..<channels {
                    var sum = 0.0
                    for (y, down) in rows[row] {
                        for (place, across) in rows[column] {
                            sum += down * across * Double(x.values[(y * side + place) * channels + c])
                        }
                    }
                    let rounded = min(255, max(0, sum.rounded(.toNearestOrEven)))
                    let value = pixels ? rounded : (sum / 255 - mean[c]) / std[c]
                    let to = channelsLast ? (row * size + column) * channels + c : (c * size + row) * size + column
                    out[to] = Float(value)
                }
            }
        }
        return out
    }

    /// The old pixels that make a new one, and their weights. Beyond the edge the pixel at the edge counts.
    private static func taps(_ i: Int) -> [(Int, Double)] {
        if side == size { return [(i, 1)] }
        let place = (Double(i) + 0.5) * Double(side) / Double(size) - 0.5
        let first = Int(place.rounded(.down)) - 1
        return (first...first + 3).map { (min(side - 1, max(0, $0)), cubic(abs(place - Double($0)), -0.75)) }
    }
}

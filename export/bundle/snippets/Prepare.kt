// Prepares an image for the model files of this folder exactly as training did. It needs Kotlin's standard library
// only: on Android, decode with BitmapFactory, turn the bitmap as ExifInterface.TAG_ORIENTATION says, and take its
// pixels with getPixels. samples.json and samples.bin beside this file have what every step must give.
//
//     bitmap.getPixels(argb, 0, width, 0, 0, width, height)
//     val input = Prepare.normalise(Prepare.crop(Prepare.resize(Prepare.decode(width, height, argb))))
//     // for onnxruntime-android: OnnxTensor.createTensor(env, FloatBuffer.wrap(input), Prepare.SHAPE)

import kotlin.math.abs
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min
import kotlin.math.round

/** Numbers 0..255 in rows from the top, the channels of a pixel side by side. */
class Picture(val width: Int, val height: Int, val channels: Int, val values: IntArray = IntArray(width * height * channels))

object Prepare {
    // From manifest.json, `preprocessing` and `input` of @FILE@.
    const val SHORTER = @SHORTER@ // side in pixels to which the shorter side is resized; 0: both sides become SIDE
    const val SIDE = @SIDE@ // side of the crop in pixels
    const val SIZE = @SIZE@ // side of the network's input in pixels
    const val BILINEAR = @BILINEAR@ // else bicubic
    const val CHANNELS = @CHANNELS@ // red, green and blue; or gray
    const val CHANNELS_LAST = @CHANNELS_LAST@
    const val PIXELS = @PIXELS@ // whether the file takes whole numbers 0..255
    val MEAN = doubleArrayOf(@MEAN@)
    val STD = doubleArrayOf(@STD@)
    val SHAPE = longArrayOf(@SHAPE@)

    /** Step 1: colours of an upright image, as Android gives them (0xAARRGGBB). Transparency is not applied. */
    fun decode(width: Int, height: Int, argb: IntArray): Picture {
        val out = Picture(width, height, CHANNELS)
        for (i in 0 until width * height) {
            val r = argb[i] shr 16 and 255
            val g = argb[i] shr 8 and 255
            val b = argb[i] and 255
            if (CHANNELS == 3) {
                out.values[3 * i] = r
                out.values[3 * i + 1] = g
                out.values[3 * i + 2] = b
            } else {
                out.values[i] = r * 19595 + g * 38470 + b * 7471 + 0x8000 shr 16
            }
        }
        return out
    }

    /** Step 2: the antialiased resize of Pillow, across and then down, with whole numbers in between. */
    fun resize(x: Picture): Picture {
        val shorter = min(x.width, x.height)
        val width = if (SHORTER == 0) SIDE else SHORTER * x.width / shorter
        val height = if (SHORTER == 0) SIDE else SHORTER * x.height / shorter
        val across = if (width == x.width) x else resizeLines(x, width, true)
        return if (height == x.height) across else resizeLines(across, height, false)
    }

    private fun resizeLines(x: Picture, size: Int, across: Boolean): Picture {
        val old = if (across) x.width else x.height
        val out = if (across) Picture(size, x.height, x.channels) else Picture(x.width, size, x.channels)
        // Values from one pixel to the next along a line.
        val step = if (across) x.channels else x.width * x.channels
        val scale = old.toDouble() / size
        val wide = max(scale, 1.0)
        val reach = (if (BILINEAR) 1.0 else 2.0) * wide
        for (i in 0 until size) {
            val center = (i + 0.5) * scale
            val start = max(0, (center - reach + 0.5).toInt())
            val end = min(old, (center + reach + 0.5).toInt())
            val weights = DoubleArray(end - start) { weigh((it + start - center + 0.5) / wide) }
            val total = weights.sum()
            // Pillow's weights are whole numbers of 22 bits behind the point, halves away from zero.
            val fixed = LongArray(weights.size) {
                val weight = weights[it] / total * (1 shl 22)
                (weight + if (weight < 0) -0.5 else 0.5).toLong()
            }
            val lines = if (across) x.height else x.width
            for (line in 0 until lines) {
                val from = if (across) line * x.width * x.channels else line * x.channels
                val to = if (across) (line * size + i) * x.channels else (i * x.width + line) * x.channels
                for (c in 0 until x.channels) {
                    var sum = 1L shl 21
                    for (k in fixed.indices) sum += x.values[from + (start + k) * step + c] * fixed[k]
                    out.values[to + c] = (sum shr 22).coerceIn(0, 255).toInt()
                }
            }
        }
        return out
    }

    private fun weigh(distance: Double): Double {
        val x = abs(distance)
        return if (BILINEAR) max(0.0, 1 - x) else cubic(x, -0.5)
    }

    private fun cubic(x: Double, a: Double): Double = when {
        x < 1 -> ((a + 2) * x - (a + 3)) * x * x + 1
        x < 2 -> (((x - 5) * x + 8) * x - 4) * a
        else -> 0.0
    }

    /** Step 3: the middle. round takes halves to the even number, as Python does. */
    fun crop(x: Picture): Picture {
        val left = round((x.width - SIDE) / 2.0).toInt()
        val top = round((x.height - SIDE) / 2.0).toInt()
        val out = Picture(SIDE, SIDE, x.channels)
        for (row in 0 until SIDE) {
            val from = ((row + top) * x.width + left) * x.channels
            x.values.copyInto(out.values, row * SIDE * x.channels, from, from + SIDE * x.channels)
        }
        return out
    }

    /** Step 4: torch's bicubic to the network's side (a = -0.75, not antialiased), mean and deviation, layout. */
    fun normalise(x: Picture): FloatArray {
        val out = FloatArray(SIZE * SIZE * CHANNELS)
        val rows = Array(SIZE) { taps(it) }
        for (row in 0 until SIZE) for (column in 0 until SIZE) for (c in 0 until CHANNELS) {
            var sum = 0.0
            for ((y, down) in rows[row]) for ((place, across) in rows[column]) {
                sum += down * across * x.values[(y * SIDE + place) * CHANNELS + c]
            }
            val value = if (PIXELS) round(sum).coerceIn(0.0, 255.0) else (sum / 255 - MEAN[c]) / STD[c]
            val to = if (CHANNELS_LAST) (row * SIZE + column) * CHANNELS + c else (c * SIZE + row) * SIZE + column
            out[to] = value.toFloat()
        }
        return out
    }

    /** The old pixels that make a new one, and their weights. Beyond the edge the pixel at the edge counts. */
    private fun taps(i: Int): List<Pair<Int, Double>> {
        if (SIDE == SIZE) return listOf(Pair(i, 1.0))
        val place = (i + 0.5) * SIDE / SIZE - 0.5
        val first = floor(place).toInt() - 1
        return (first..first + 3).map { Pair(it.coerceIn(0, SIDE - 1), cubic(abs(place - it), -0.75)) }
    }
}

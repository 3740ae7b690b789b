"""Makes the pictures of this folder (Pillow 13), which Rust's encoders cannot write: quadrants of 24 x 16 pixels in red,
green / blue, white as in the tests. Prints what Pillow reads from the two with inks."""
from PIL import Image

COLOURS = [(200, 30, 30), (30, 180, 40), (30, 40, 190), (240, 240, 240)]
CENTRES = [(12, 8), (36, 8), (12, 24), (36, 24)]

rgb = Image.new("RGB", (48, 32))
for y in range(32):
    for x in range(48):
        rgb.putpixel((x, y), COLOURS[(x >= 24) + 2 * (y >= 16)])
inverse = Image.eval(rgb, lambda value: 255 - value)

cmyk = rgb.convert("CMYK")
cmyk.putdata([(c, m, y, 40) for c, m, y, _ in cmyk.getdata()])  # black ink too, else it would not be tested
cmyk.save("cmyk.jpg", quality=95)  # Pillow writes Adobe's marker and inverted inks, transform 0
data = bytearray(open("cmyk.jpg", "rb").read())
data[data.index(b"Adobe") + 11] = 2  # the same numbers, declared YCCK
open("ycck.jpg", "wb").write(data)
for name in ("cmyk.jpg", "ycck.jpg"):
    print(name, [Image.open(name).convert("RGB").getpixel(at) for at in CENTRES])

rgb.save("progressive.jpg", quality=95, progressive=True)
rgb.save("lossy.webp", quality=95)
rgba = rgb.copy()
rgba.putalpha(Image.linear_gradient("L").resize((48, 32)).point(lambda value: 255 if value > 10 else value))
rgba.save("lossy_alpha.webp", quality=95)
frames = {"save_all": True, "append_images": [inverse], "duration": 100}
rgb.save("animated.webp", lossless=True, **frames)
rgb.save("animated.png", **frames)
rgb.save("animated.gif", **frames)
rgb.save("lzw.tif", compression="tiff_lzw")
rgb.save("deflate.tif", compression="tiff_adobe_deflate")
rgb.save("pages.tif", save_all=True, append_images=[inverse])
cmyk.save("cmyk.tif")
rgb.quantize(4).save("palette.bmp")
rgb.quantize(4).save("interlaced.gif", interlace=1)

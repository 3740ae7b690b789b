"""The pictures: Noto Color Emoji on plain backgrounds, each with a caption that names the emoji and the colour.

`Emoji` holds the drawings and three lists of names: `names` (what the base draws), `held` (what it never sees: the
subjects for adapters) and `rest` (what only the autoencoder sees). Randomness comes from the caller's
`random.Random`; the order of its calls is part of the recipe (datasets/octopus repeats it).

Axes: n pictures, h w height and width. Pictures for models are (n, 3, h, w) f32 in [-1, 1].
"""
import os
import unicodedata
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

FONT = os.environ.get("NOTO_COLOR_EMOJI", "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SIZE_PX = 109  # the font's only bitmap size
MASTER_PX = 128  # every emoji's own square
SIZE_PX = 64  # what the base draws
SIDE_PX = (44, 62)  # smallest and largest side of the emoji within a picture

COLOURS = {
    "red": (220, 50, 47), "orange": (240, 140, 40), "yellow": (245, 215, 80), "green": (80, 170, 90),
    "blue": (60, 110, 210), "purple": (140, 90, 190), "pink": (245, 160, 190), "brown": (130, 90, 60),
    "white": (250, 250, 250), "gray": (150, 150, 150), "black": (20, 20, 20), "teal": (50, 160, 160),
}  # fmt: skip
TEMPLATES = [
    "a picture of a {n} on a {c} background", "{n}, {c} background", "a {n} on {c}", "{n} on a {c} background",
    "a {n}",
]  # fmt: skip

# Ranges of code points in which the font has pictures.
CODE_POINTS = [
    (0x1F300, 0x1F650), (0x1F680, 0x1F700), (0x1F900, 0x1FA00), (0x1FA70, 0x1FB00), (0x2600, 0x27C0), (0x2B50, 0x2B56),
]  # fmt: skip
SKIPPED_WORDS = ("emoji modifier", "skin", "clock face", "symbol for")

HELD = [
    "octopus", "t-rex", "fox face", "cactus", "rocket", "teddy bear", "sloth", "birthday cake", "hedgehog",
    "jack-o-lantern",
]  # fmt: skip
WANTED = """
avocado,banana,red apple,cherries,strawberry,watermelon,pineapple,tomato,aubergine,carrot,hot dog,hamburger,
slice of pizza,doughnut,cookie,lollipop,ice cream,cupcake,bread,cheese wedge,egg,mushroom,broccoli,ear of maize,grapes,
lemon,pear,peach,coconut,mango,sunflower,tulip,rose,cherry blossom,four leaf clover,maple leaf,palm tree,evergreen tree,
deciduous tree,dog face,cat face,mouse face,hamster face,rabbit face,bear face,panda face,koala,tiger face,lion face,
cow face,pig face,frog face,monkey face,chicken,penguin,bird,baby chick,duck,owl,bat,wolf face,boar,horse face,
unicorn face,honeybee,bug,snail,butterfly,ant,lady beetle,turtle,snake,crab,shrimp,tropical fish,blowfish,dolphin,whale,
spouting whale,elephant,dromedary camel,automobile,taxi,bus,fire engine,ambulance,police car,delivery truck,tractor,
bicycle,sailboat,airplane,helicopter,steam locomotive,tram,crown,top hat,ring,gem stone,umbrella,soccer ball,baseball,
guitar,drum with drumsticks,balloon,electric light bulb,blue book,green book,orange book,money bag,bomb,hammer,axe,
shield,key,anchor,brick,canned food,pretzel,croissant,pancakes,kiwifruit,cucumber,hot pepper,chestnut,peanuts,garlic,
onion,sandwich,taco,burrito,fortune cookie,pie
""".replace("\n", "").split(",")


def draw_master(font, code_point):
    """One emoji, cropped to its outline and centred in a square: (MASTER_PX, MASTER_PX, 4) uint8, or None."""
    canvas = Image.new("RGBA", (136, 128), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((0, 0), chr(code_point), font=font, embedded_color=True)
    outline = canvas.getbbox()
    if not outline or outline[2] - outline[0] < 60:
        return None
    num_shades = len(np.unique(np.asarray(canvas)[..., :3].reshape(-1, 3), axis=0))
    if num_shades < 20:  # a plain symbol
        return None
    glyph = canvas.crop(outline)
    side = max(glyph.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    return np.asarray(square.resize((MASTER_PX, MASTER_PX), Image.LANCZOS))


def draw_masters(font_path):
    """name -> (MASTER_PX, MASTER_PX, 4) uint8 of every emoji of the font."""
    font, masters = ImageFont.truetype(font_path, FONT_SIZE_PX), {}
    for low, high in CODE_POINTS:
        for code_point in range(low, high):
            name = unicodedata.name(chr(code_point), "").lower()
            if not name or any(word in name for word in SKIPPED_WORDS):
                continue
            master = draw_master(font, code_point)
            if master is not None:
                masters[name] = master
    return masters


def load_masters(font_path, cache):
    """As draw_masters; with a cache folder, drawn once and kept there (75 MB)."""
    if cache is None:
        return draw_masters(font_path)
    path = Path(cache) / "emoji.npz"
    if not path.exists():
        masters = draw_masters(font_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part.npz")
        np.savez(unfinished, names=np.array(list(masters)), pictures=np.stack(list(masters.values())))
        unfinished.rename(path)
    kept = np.load(path)
    return dict(zip(kept["names"].tolist(), kept["pictures"]))


def add_picture_options(parser):
    """The options that Emoji.from_options reads."""
    parser.add_argument("--font", default=FONT, help="NotoColorEmoji.ttf (Debian package fonts-noto-color-emoji)")
    parser.add_argument(
        "--cache", default=os.environ.get("LORALEI_EMOJI_CACHE"),
        help="folder in which the drawn emoji are kept (default $LORALEI_EMOJI_CACHE, or not kept: 10 s a run)",
    )  # fmt: skip


class Emoji:
    """Every emoji's drawing, and which of them serve what."""

    def __init__(self, masters):
        self.masters = masters
        self.names = sorted(name for name in WANTED if name in masters)
        self.held = [name for name in HELD if name in masters]
        self.rest = sorted(name for name in masters if name not in self.held and name not in self.names)

    @classmethod
    def from_options(cls, options):
        return cls(load_masters(options.font, options.cache))

    def resized(self, name, side_px):
        """The emoji as (side_px, side_px, 4) f32 in [0, 255]."""
        return np.asarray(Image.fromarray(self.masters[name]).resize((side_px, side_px), Image.LANCZOS)).astype(np.float32)

    def render(self, name, rng, colour=None):
        """One picture (SIZE_PX, SIZE_PX, 3) f32 in [-1, 1] at a random size, place and flip, and its colour's name."""
        colour = colour or rng.choice(list(COLOURS))
        side = rng.randint(*SIDE_PX)
        left, top = rng.randint(0, SIZE_PX - side), rng.randint(0, SIZE_PX - side)
        glyph = self.resized(name, side)
        if rng.random() < 0.5:
            glyph = glyph[:, ::-1]
        picture = np.tile(np.array(COLOURS[colour], np.float32), (SIZE_PX, SIZE_PX, 1))
        under = picture[top : top + side, left : left + side]
        under[:] = over(glyph, under)
        return picture / 127.5 - 1, colour

    def batch(self, size, rng, names):
        """(size, 3, SIZE_PX, SIZE_PX) pictures and their (name, colour) pairs."""
        picked = [rng.choice(names) for _ in range(size)]
        pictures, colours = zip(*(self.render(name, rng) for name in picked))
        return to_tensor(pictures), list(zip(picked, colours))


def over(glyph, ground):
    """glyph (h, w, 4) in [0, 255] laid over ground, any shape that broadcasts to (h, w, 3)."""
    alpha = glyph[..., 3:] / 255
    return ground * (1 - alpha) + glyph[..., :3] * alpha


def to_tensor(pictures):
    """Pictures (h, w, 3) -> (n, 3, h, w)."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def save_grid(pictures, path, columns=8, zoom=2):
    """Saves (n, 3, h, w) in [-1, 1] as one picture, row by row; an unfinished last row is left out."""
    tiles = ((pictures.float().clamp(-1, 1).permute(0, 2, 3, 1).numpy() + 1) * 127.5).astype("uint8")
    rows = [np.concatenate(list(tiles[i : i + columns]), 1) for i in range(0, len(tiles) - columns + 1, columns)]
    whole = np.concatenate(rows, 0)
    Image.fromarray(whole).resize((whole.shape[1] * zoom, whole.shape[0] * zoom), Image.NEAREST).save(path)

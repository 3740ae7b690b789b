"""Does a picture show what its prompt says?

The background is the border's median. What stands out from it is cut out, scaled to 48 px and compared with every name's
rendering on that background. Real renderings score 1.00, so what is missing from 1 is the model's.
"""
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from pictures import COLOURS

CUT_PX = 48  # side of the square in which cut and rendering are compared
APART = 60  # summed difference of the three channels from which a pixel belongs to the object
MINIMUM_OBJECT_PX = 30
SCALES = (0.95, 1.0, 1.06)
SHIFTS_PX = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # y, x


@dataclass
class Score:
    """Shares of pictures with the right background, the right name, and the right name among the nearest five."""

    colour: float
    name: float
    among_five: float

    def __str__(self):
        return f"colour {self.colour:.2f}, name {self.name:.2f}, among five {self.among_five:.2f}"

    def rounded(self):
        return {part: round(share, 3) for part, share in asdict(self).items()}


def background(picture):
    """The median colour of the border of (3, h, w) in [0, 255]."""
    return torch.cat([picture[:, 0], picture[:, -1], picture[:, :, 0], picture[:, :, -1]], 1).median(1).values


def nearest_colour(picture):
    """The name of the colour nearest to the background of (3, h, w) in [0, 255]."""
    ground = background(picture)
    return min(COLOURS, key=lambda known: (torch.tensor(COLOURS[known]) - ground).abs().sum().item())


class Judge:
    """Names the emoji in a picture."""

    def __init__(self, emoji):
        self.names = emoji.names + emoji.held
        glyphs = torch.stack([torch.from_numpy(emoji.resized(name, CUT_PX)) for name in self.names]).permute(0, 3, 1, 2)
        glyphs = torch.cat([glyphs, glyphs.flip(3)])  # (2 names, 4, CUT_PX, CUT_PX): as they are, then mirrored
        self.colours, self.alpha = glyphs[:, :3], glyphs[:, 3:] / 255

    def nearest(self, picture, count=5):
        """The names nearest to a picture (3, h, w) in [0, 255], best first; none if nothing stands out.

        Nearness is the least squared error over flips and small changes of the cut.
        """
        ground = background(picture)[:, None, None]
        apart = ((picture - ground).abs().sum(0) > APART).float()
        apart = F.avg_pool2d(apart[None, None], 3, 1, 1)[0, 0] > 0.4  # without lone specks
        rows, columns = torch.where(apart)
        if len(rows) < MINIMUM_OBJECT_PX:
            return []
        side = max(rows.max() - rows.min(), columns.max() - columns.min()).item() + 1
        centre_y, centre_x = (rows.max() + rows.min()).item() / 2, (columns.max() + columns.min()).item() / 2
        height, width = picture.shape[1:]
        references = self.colours * self.alpha + ground[None] * (1 - self.alpha)
        centred = (picture - ground)[None]  # zero outside, so the cut may reach over the edge
        best = torch.full((len(references),), torch.inf)
        for scale in SCALES:
            offsets = torch.linspace(-1 + 1 / CUT_PX, 1 - 1 / CUT_PX, CUT_PX) * side * scale / 2
            for shift_y, shift_x in SHIFTS_PX:
                grid_y, grid_x = torch.meshgrid(
                    (centre_y + shift_y + offsets + 0.5) / height * 2 - 1,
                    (centre_x + shift_x + offsets + 0.5) / width * 2 - 1,
                    indexing="ij",
                )
                where = torch.stack([grid_x, grid_y], -1)[None]
                cut = F.grid_sample(centred, where, align_corners=False)[0] + ground
                best = torch.minimum(best, ((references - cut) ** 2).mean((1, 2, 3)))
        order = torch.minimum(best[: len(self.names)], best[len(self.names) :]).argsort()
        return [self.names[index] for index in order[:count]]

    def score(self, pictures, wanted):
        """pictures (n, 3, h, w) in [-1, 1] against wanted [(name, colour)] -> Score."""
        right_colour = right_name = among_five = 0
        for picture, (name, colour) in zip((pictures.float().clamp(-1, 1) + 1) * 127.5, wanted):
            found = self.nearest(picture)
            right_colour += nearest_colour(picture) == colour
            right_name += found[:1] == [name]
            among_five += name in found
        return Score(right_colour / len(wanted), right_name / len(wanted), among_five / len(wanted))


@dataclass
class StyleScore:
    """Shares of pictures in the style, with the right name (in whichever style), and with the right background."""

    styled: float
    name: float
    colour: float


class StyleJudge(Judge):
    """Compares with every name's rendering as it is and in a style: which is nearer? `names` are (name, is it styled)."""

    def __init__(self, plain, styled):
        judges = Judge(plain), Judge(styled)
        self.names = [(name, is_styled) for is_styled, judge in enumerate(judges) for name in judge.names]
        self.colours, self.alpha = (
            torch.cat([getattr(judge, part).chunk(2)[side] for side in (0, 1) for judge in judges])
            for part in ("colours", "alpha")
        )  # as they are, then mirrored

    def score(self, pictures, wanted):
        """As Judge.score -> StyleScore."""
        in_style = right_name = right_colour = 0
        for picture, (name, colour) in zip((pictures.float().clamp(-1, 1) + 1) * 127.5, wanted):
            right_colour += nearest_colour(picture) == colour
            for found_name, is_styled in self.nearest(picture, count=1):
                in_style += is_styled
                right_name += found_name == name
        return StyleScore(in_style / len(wanted), right_name / len(wanted), right_colour / len(wanted))

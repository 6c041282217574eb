"""Renders the scenes of the synthetic corpus: a place, its weather, an active actor, an object.

Scenes are rendered at twice the size and downscaled. Position, scale, direction, colors, clutter
and noise are random; the slot values are always visible. All lengths are in units of half a pixel
of `size`; with `scale` an image has more pixels on each side and shows the same content.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageDraw

Color = tuple[int, int, int]

SKY_COLORS = {
    "sun": (130, 200, 250),
    "rain": (120, 130, 150),
    "snow": (190, 205, 225),
    "storm": (60, 55, 85),
}
GROUND_COLORS = {
    "beach": (235, 215, 150),
    "forest": (60, 110, 50),
    "city": (125, 125, 130),
    "desert": (220, 160, 80),
    "mountain": (130, 120, 105),
    "meadow": (120, 195, 75),
}
ACTOR_COLORS = {
    "robot": (150, 160, 175),
    "cat": (240, 140, 40),
    "bear": (115, 70, 35),
    "penguin": (25, 25, 35),
    "frog": (50, 190, 60),
    "rabbit": (245, 225, 230),
}


@dataclass(frozen=True)
class RenderedScene:
    """An image (RGB) and the box of its object, before actor and weather are drawn over it.

    box: left, top, right, bottom as fractions of the image's width and height.
    """

    image: Image.Image
    box: tuple[float, float, float, float]


class ScaledDraw:
    """ImageDraw for an image with `scale` pixels per unit; points and widths are in units."""

    def __init__(self, image: Image.Image, scale: int):
        self.pen, self.scale = ImageDraw.Draw(image), scale

    def __getattr__(self, shape: str) -> Callable:
        """rectangle, ellipse, line, ...: the methods of ImageDraw."""

        def draw(points: Sequence, *angles: float, width: int = 1, **colors: Color) -> None:
            pixels = (np.array(points) * self.scale).ravel().tolist()
            getattr(self.pen, shape)(pixels, *angles, width=width * self.scale, **colors)

        return draw


def render_scene(scene: dict[str, str], random: Random, size: int, scale: int = 1) -> RenderedScene:
    """Render {place, weather, actor, activity, object} as an image with a side of size * scale."""
    side = 2 * size
    image = Image.new(
        "RGB", (side * scale, side * scale), _jitter_color(SKY_COLORS[scene["weather"]], random)
    )
    pen = ScaledDraw(image, scale)
    horizon = side * random.uniform(0.45, 0.58)
    shade = 0.75 if scene["weather"] == "storm" else 1.0
    ground = _jitter_color(
        _map_color(lambda c: int(c * shade), GROUND_COLORS[scene["place"]]), random
    )
    pen.rectangle([0, horizon, side, side], fill=ground)
    PLACE_DRAWERS[scene["place"]](pen, side, horizon, random)
    _draw_clutter(pen, side, horizon, random)
    left = random.random() < 0.5
    actor_x = random.uniform(0.22, 0.38) if left else random.uniform(0.62, 0.78)
    object_x = random.uniform(0.68, 0.84) if left else random.uniform(0.16, 0.32)
    base, height = side * random.uniform(0.82, 0.94), side * random.uniform(0.26, 0.34)
    without_object = image.copy()
    OBJECT_DRAWERS[scene["object"]](pen, side * object_x, base, height, random)
    box = ImageChops.difference(without_object, image).getbbox() or (0, 0, 0, 0)
    left_edge, top, right, bottom = (edge / image.width for edge in box)
    _draw_actor(image, scale, scene["actor"], scene["activity"], side * actor_x, random)
    WEATHER_DRAWERS[scene["weather"]](pen, side, random)
    return RenderedScene(
        _downscale_and_add_noise(image, size * scale, random),
        (left_edge, top, right, bottom),
    )


def _downscale_and_add_noise(image: Image.Image, size: int, random: Random) -> Image.Image:
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BOX)).astype(np.float32)
    noise = np.random.default_rng(random.getrandbits(32))
    pixels = pixels * noise.uniform(0.9, 1.1) + noise.normal(0, 5, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _jitter_color(color: Color, random: Random, spread: int = 16) -> Color:
    return _map_color(lambda c: max(0, min(255, c + random.randint(-spread, spread))), color)


def _map_color(function: Callable[[int], int], color: Color) -> Color:
    red, green, blue = map(function, color)
    return red, green, blue


def _centered_box(
    x: float, y: float, half_width: float, half_height: float | None = None
) -> list[float]:
    half_height = half_width if half_height is None else half_height
    return [x - half_width, y - half_height, x + half_width, y + half_height]


def _draw_clutter(pen: ScaledDraw, side: int, horizon: float, random: Random) -> None:
    for _ in range(random.randint(0, 4)):
        shape = random.choice([pen.ellipse, pen.rectangle])
        where = random.uniform(0, side), random.uniform(horizon, side)
        color = tuple(random.randint(40, 220) for _ in range(3))
        shape(_centered_box(*where, side * random.uniform(0.01, 0.03)), fill=color)


# ------------------------------------------------------------------------------------------ places
def _draw_beach(pen: ScaledDraw, side: int, horizon: float, random: Random) -> None:
    sea = [0, horizon - side * 0.1, side, horizon + side * 0.03]
    pen.rectangle(sea, fill=_jitter_color((30, 110, 190), random))


def _draw_forest(pen: ScaledDraw, side: int, horizon: float, random: Random) -> None:
    for _ in range(6):
        x, height = random.uniform(0, side), side * random.uniform(0.25, 0.4)
        pen.rectangle(
            _centered_box(x, horizon - height * 0.1, side * 0.015, height * 0.25), fill=(90, 60, 30)
        )
        crown = [
            (x - side * 0.08, horizon - height * 0.2),
            (x + side * 0.08, horizon - height * 0.2),
        ]
        pen.polygon([*crown, (x, horizon - height)], fill=_jitter_color((25, 90, 40), random))


def _draw_city(pen: ScaledDraw, side: int, horizon: float, random: Random) -> None:
    x = 0.0
    while x < side:
        width, height = side * random.uniform(0.1, 0.2), side * random.uniform(0.15, 0.4)
        wall = [x, horizon - height, x + width - 2, horizon]
        pen.rectangle(wall, fill=_jitter_color((95, 90, 100), random))
        for row in range(int(horizon - height) + 3, int(horizon) - 4, 8):
            for column in range(int(x) + 3, int(x + width) - 5, 7):
                pen.rectangle([column, row, column + 2, row + 3], fill=(250, 230, 120))
        x += width


def _draw_desert(pen: ScaledDraw, side: int, horizon: float, random: Random) -> None:
    for _ in range(2):
        x, y, green = (
            random.uniform(0, side),
            horizon + side * 0.04,
            _jitter_color((50, 140, 60), random),
        )
        pen.rectangle([x - 3, y - side * 0.2, x + 3, y], fill=green)
        pen.rectangle(
            [x - side * 0.06, y - side * 0.12, x + side * 0.06, y - side * 0.09], fill=green
        )
        for arm, top in ((-0.06, 0.17), (0.045, 0.19)):
            right = x + side * (arm + 0.015)
            pen.rectangle([x + side * arm, y - side * top, right, y - side * 0.1], fill=green)
    dune = [-side * 0.2, horizon - side * 0.08, side * 0.6, horizon + side * 0.2]
    pen.pieslice(dune, 180, 360, fill=_jitter_color(GROUND_COLORS["desert"], random))


def _draw_mountain(pen: ScaledDraw, side: int, horizon: float, random: Random) -> None:
    for peak in (0.2, 0.5, 0.8):
        x, height = side * (peak + random.uniform(-0.1, 0.1)), side * random.uniform(0.28, 0.42)
        half, top = side * 0.24, (x, horizon - height)
        rock = _jitter_color((105, 95, 100), random)
        pen.polygon([(x - half, horizon), (x + half, horizon), top], fill=rock)
        snow = horizon - height * 0.7
        pen.polygon([(x - half * 0.3, snow), (x + half * 0.3, snow), top], fill=(240, 240, 250))


def _draw_meadow(pen: ScaledDraw, side: int, horizon: float, random: Random) -> None:
    for _ in range(22):
        color = random.choice([(250, 90, 150), (255, 240, 80), (255, 255, 255)])
        pen.ellipse(
            _centered_box(random.uniform(0, side), random.uniform(horizon, side), 2), fill=color
        )


PLACE_DRAWERS: dict[str, Callable] = {
    "beach": _draw_beach,
    "forest": _draw_forest,
    "city": _draw_city,
    "desert": _draw_desert,
    "mountain": _draw_mountain,
    "meadow": _draw_meadow,
}


# ----------------------------------------------------------------------------------------- weather
def _draw_sun(pen: ScaledDraw, side: int, random: Random) -> None:
    where = random.uniform(0.12, 0.88) * side, random.uniform(0.08, 0.16) * side
    pen.ellipse(_centered_box(*where, side * 0.08), fill=(255, 225, 50))


def _draw_rain(pen: ScaledDraw, side: int, random: Random) -> None:
    for _ in range(45):
        x, y = random.uniform(0, side), random.uniform(0, side)
        pen.line([x, y, x - side * 0.03, y + side * 0.07], fill=(170, 200, 240), width=2)


def _draw_snow(pen: ScaledDraw, side: int, random: Random) -> None:
    for _ in range(45):
        pen.ellipse(
            _centered_box(random.uniform(0, side), random.uniform(0, side), 2), fill=(255, 255, 255)
        )


def _draw_storm(pen: ScaledDraw, side: int, random: Random) -> None:
    x = random.uniform(0.15, 0.85) * side
    bolt = [(x, 0.0)]
    for part in range(1, 5):
        bolt.append((x + side * random.uniform(-0.08, 0.08), side * 0.1 * part))
    pen.line(bolt, fill=(255, 255, 140), width=4)


WEATHER_DRAWERS: dict[str, Callable] = {
    "sun": _draw_sun,
    "rain": _draw_rain,
    "snow": _draw_snow,
    "storm": _draw_storm,
}


# ----------------------------------------------------------------------------------------- objects
def _draw_ball(pen: ScaledDraw, x: float, base: float, height: float, random: Random) -> None:
    box = _centered_box(x, base - height * 0.42, height * 0.42)
    pen.ellipse(box, fill=_jitter_color((220, 40, 50), random))
    for start in (40, 220):
        pen.pieslice(box, start, start + 50, fill=(255, 255, 255))


def _draw_bicycle(pen: ScaledDraw, x: float, base: float, height: float, random: Random) -> None:
    wheel = height * 0.27
    hub = base - wheel
    left, right, seat, bar = (
        x - height * 0.36,
        x + height * 0.36,
        x - height * 0.12,
        x + height * 0.25,
    )
    top = base - height * 0.75
    for center in (left, right):
        pen.ellipse(
            _centered_box(center, hub, wheel),
            outline=_jitter_color((20, 20, 30), random, 10),
            width=4,
        )
    frame = _jitter_color((30, 80, 220), random)
    pen.line([left, hub, x, hub, bar, top, seat, top, left, hub], fill=frame, width=4)
    pen.line([x, hub, seat, top], fill=frame, width=4)
    pen.line([right, hub, x + height * 0.22, base - height * 0.9], fill=frame, width=4)


def _draw_lantern(pen: ScaledDraw, x: float, base: float, height: float, random: Random) -> None:
    top, glow = base - height * 1.2, height * 0.26
    pen.rectangle([x - 3, top, x + 3, base], fill=(40, 40, 45))
    pen.ellipse(_centered_box(x, top, glow * 1.5), fill=_jitter_color((255, 200, 60), random))
    pen.ellipse(_centered_box(x, top, glow * 0.8), fill=(255, 255, 220))


def _draw_ladder(pen: ScaledDraw, x: float, base: float, height: float, random: Random) -> None:
    wood, half, top = _jitter_color((160, 100, 40), random), height * 0.25, base - height * 1.5
    for edge in (x - half, x + half):
        pen.line([edge, base, edge, top], fill=wood, width=5)
    for rung in range(6):
        y = base + (top - base) * (rung + 0.5) / 6
        pen.line([x - half, y, x + half, y], fill=wood, width=4)


def _draw_basket(pen: ScaledDraw, x: float, base: float, height: float, random: Random) -> None:
    straw, half, rim = _jitter_color((150, 95, 50), random), height * 0.5, base - height * 0.5
    handle = [x - half * 0.8, base - height * 0.95, x + half * 0.8, base - height * 0.05]
    pen.arc(handle, 180, 360, fill=straw, width=5)
    bottom = [(x + half * 0.7, base), (x - half * 0.7, base)]
    pen.polygon([(x - half, rim), (x + half, rim), *bottom], fill=straw)
    for apple in (-0.5, 0, 0.5):
        pen.ellipse(
            _centered_box(x + apple * half, rim - 3, 6), fill=_jitter_color((200, 30, 40), random)
        )


def _draw_kite(pen: ScaledDraw, x: float, base: float, height: float, random: Random) -> None:
    y, half, long = base - height * 1.3, height * 0.45, height * 0.6
    string = [x, y + height * 0.5, x - height * 0.15, base - height * 0.3, x + height * 0.1, base]
    pen.line(string, fill=(60, 60, 60), width=2)
    corners = [(x, y - long), (x + half, y), (x, y + long), (x - half, y)]
    pen.polygon(corners, fill=_jitter_color((170, 50, 200), random))
    pen.line([x, y - long, x, y + long], fill=(255, 255, 255), width=2)
    pen.line([x - half, y, x + half, y], fill=(255, 255, 255), width=2)


OBJECT_DRAWERS: dict[str, Callable] = {
    "ball": _draw_ball,
    "bicycle": _draw_bicycle,
    "lantern": _draw_lantern,
    "ladder": _draw_ladder,
    "basket": _draw_basket,
    "kite": _draw_kite,
}


# ------------------------------------------------------------------------------------------ actors
def _draw_actor(
    scene: Image.Image, scale: int, actor: str, activity: str, x: float, random: Random
) -> None:
    """Draw the actor on a separate sheet, rotate, flip and paste it, and add the activity's cue."""
    side = scene.width / scale
    base, height = side * random.uniform(0.84, 0.95), side * random.uniform(0.40, 0.52)
    width = int(height * 1.6)
    sheet = Image.new("RGBA", (width * scale, width * scale))
    fur = _jitter_color(ACTOR_COLORS[actor], random, 14)
    middle, feet = width / 2, width * 0.86
    _draw_body(ScaledDraw(sheet, scale), actor, activity, middle, feet, height, fur)
    flip = x < side / 2  # the cue is drawn on the inner side of the actor, where it fits
    if activity == "sleeping":
        sheet = sheet.rotate(90 if flip else -90, resample=Image.Resampling.BILINEAR)
        top = base - width * 0.72
    else:
        sheet = sheet.rotate(random.uniform(-6, 6), resample=Image.Resampling.BILINEAR)
        if flip:
            sheet = sheet.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        top = base - feet - (height * 0.22 if activity == "jumping" else 0)
    scene.paste(sheet, (int(x - width / 2) * scale, int(top) * scale), sheet)
    cue = ACTIVITY_DRAWERS.get(activity)
    if cue:
        cue(ScaledDraw(scene, scale), x, base, height, 1 if flip else -1)


def _draw_body(
    pen: ScaledDraw, actor: str, activity: str, x: float, feet: float, height: float, fur: Color
) -> None:
    dark = tuple(int(c * 0.7) for c in fur)
    width, half, shoulder = max(4, int(height * 0.07)), height * 0.17, feet - height * 0.58
    for dx, dy in LEG_POSES.get(activity, ((-0.09, 0.0), (0.09, 0.0))):
        hip = x + (0.0 if activity == "running" else 0.09 * height * (1 if dx > 0 else -1))
        pen.line(
            [hip, feet - height * 0.25, x + height * dx, feet - height * dy], fill=dark, width=width
        )
    if actor == "robot":
        pen.rectangle([x - half, shoulder, x + half, feet - height * 0.18], fill=fur)
    else:
        torso = [x - half * 1.15, shoulder - height * 0.04, x + half * 1.15, feet - height * 0.12]
        pen.ellipse(torso, fill=fur)
    if actor == "penguin":
        belly = [x - half * 0.75, shoulder + height * 0.04, x + half * 0.75, feet - height * 0.14]
        pen.ellipse(belly, fill=(245, 245, 245))
    arm = shoulder + height * 0.12
    for side, (dx, dy) in zip(
        (-1, 1), ARM_POSES.get(activity, ((-0.24, 0.18), (0.24, 0.18))), strict=True
    ):
        pen.line(
            [x + side * half * 0.8, arm, x + height * dx, arm + height * dy], fill=dark, width=width
        )
    _draw_head(pen, actor, x, shoulder - height * 0.12, height * 0.18, fur)
    if activity == "reading":
        _draw_book(pen, x, arm + height * 0.14, height)


LEG_POSES = {
    "running": ((-0.25, 0.0), (0.27, 0.08)),
    "jumping": ((-0.2, 0.1), (0.2, 0.1)),
}
ARM_POSES = {
    "jumping": ((-0.34, -0.3), (0.34, -0.3)),
    "reading": ((-0.1, 0.16), (0.1, 0.16)),
    "running": ((-0.28, 0.12), (0.3, -0.02)),
}


def _draw_head(pen: ScaledDraw, actor: str, x: float, y: float, half: float, fur: Color) -> None:
    if actor == "robot":
        pen.rectangle([x - half, y - half * 0.9, x + half, y + half * 0.8], fill=fur)
        pen.line([x, y - half, x, y - half * 1.7], fill=(60, 60, 60), width=3)
        pen.ellipse([x - 4, y - half * 2, x + 4, y - half * 1.5], fill=(255, 0, 0))
    else:
        pen.ellipse(_centered_box(x, y, half), fill=fur)
    for side in (-1, 1):
        _draw_ear(pen, actor, x, y, half, side, fur)
    if actor == "bear":
        pen.ellipse(
            _centered_box(x, y + half * 0.35, half * 0.45, half * 0.35), fill=(215, 180, 140)
        )
    if actor == "penguin":
        pen.ellipse(
            _centered_box(x, y + half * 0.15, half * 0.7, half * 0.65), fill=(245, 245, 245)
        )
        beak = [
            (x - half * 0.3, y + half * 0.15),
            (x + half * 0.3, y + half * 0.15),
            (x, y + half * 0.65),
        ]
        pen.polygon(beak, fill=(255, 150, 0))
    if actor == "frog":
        mouth = [x - half * 0.6, y + half * 0.3, x + half * 0.6, y + half * 0.3]
        pen.line(mouth, fill=(20, 80, 20), width=3)
        return
    for side in (-1, 1):
        eye = (0, 220, 255) if actor == "robot" else (0, 0, 0)
        pen.ellipse(_centered_box(x + side * half * 0.4, y - half * 0.25, 3), fill=eye)


def _draw_ear(
    pen: ScaledDraw, actor: str, x: float, y: float, half: float, side: int, fur: Color
) -> None:
    if actor == "cat":
        outer, inner = x + side * half * 0.95, x + side * half * 0.15
        tip = (outer, y - half * 1.5)
        pen.polygon([tip, (outer, y - half * 0.2), (inner, y - half * 0.8)], fill=fur)
    elif actor == "bear":
        pen.ellipse(_centered_box(x + side * half * 0.8, y - half * 0.83, half * 0.42), fill=fur)
    elif actor == "frog":
        pen.ellipse(_centered_box(x + side * half * 0.6, y - half * 0.98, half * 0.45), fill=fur)
        pen.ellipse(
            _centered_box(x + side * half * 0.6, y - half * 0.95, half * 0.25), fill=(255, 255, 255)
        )
    elif actor == "rabbit":
        pen.ellipse(
            _centered_box(x + side * half * 0.5, y - half * 1.45, half * 0.27, half * 0.95),
            fill=fur,
        )
        inner = _centered_box(x + side * half * 0.5, y - half * 1.4, half * 0.12, half * 0.7)
        pen.ellipse(inner, fill=(255, 150, 170))


def _draw_book(pen: ScaledDraw, x: float, y: float, height: float) -> None:
    for side, page in ((-1, (255, 255, 255)), (1, (255, 250, 220))):
        edge = x + side * height * 0.24
        outside = [(edge, y - height * 0.07), (edge, y + height * 0.14)]
        corners = [(x, y), *outside, (x, y + height * 0.2)]
        pen.polygon(corners, fill=page, outline=(180, 20, 20), width=3)


# Every activity has a cue of its own, since the pose alone is hard to recognize at this size.
def _draw_bordered_line(pen: ScaledDraw, points: list[float], color: Color, border: Color) -> None:
    """A line with a border, which contrasts with any background."""
    pen.line(points, fill=border, width=8)
    pen.line(points, fill=color, width=4)


def _draw_sleeping(pen: ScaledDraw, x: float, base: float, height: float, side: int) -> None:
    for number in range(3):
        half = height * (0.06 + 0.03 * number)
        cx = x + side * height * (0.05 + 0.17 * number)
        cy = base - height * (0.45 + 0.2 * number)
        letter = [cx - half, cy - half, cx + half, cy - half, cx - half, cy + half]
        _draw_bordered_line(pen, [*letter, cx + half, cy + half], (20, 20, 90), (235, 235, 255))


def _draw_singing(pen: ScaledDraw, x: float, base: float, height: float, side: int) -> None:
    for number in range(3):
        cx = x + side * height * (0.3 + 0.12 * number)
        cy, half = base - height * (0.62 + 0.17 * number), height * 0.055
        stem = [cx + half, cy, cx + half, cy - half * 4, cx + half * 2.5, cy - half * 3]
        pen.line(stem, fill=(200, 20, 120), width=4)
        pen.ellipse(_centered_box(cx, cy, half * 1.5, half * 1.2), fill=(200, 20, 120))


def _draw_running(pen: ScaledDraw, x: float, base: float, height: float, side: int) -> None:
    for number in range(3):
        y = base - height * (0.2 + 0.2 * number)
        ends = [x + side * height * 0.34, y, x + side * height * 0.66, y]
        _draw_bordered_line(pen, ends, (0, 235, 235), (0, 60, 70))


def _draw_jumping(pen: ScaledDraw, x: float, base: float, height: float, side: int) -> None:
    pen.ellipse(
        _centered_box(x, base + height * 0.01, height * 0.25, height * 0.05), fill=(40, 40, 40)
    )


ACTIVITY_DRAWERS: dict[str, Callable] = {
    "sleeping": _draw_sleeping,
    "singing": _draw_singing,
    "running": _draw_running,
    "jumping": _draw_jumping,
}

"""`segdream render`: videos, images side by side, camera paths, depth that can be measured, and what is refused."""

import json
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segdream_cli import formats, read
from segdream_cli.cli.render import parse_size
from segdream_cli.render.camera_path import read_camera_path
from segdream_cli.render.cameras import VIEW_FILL, VIEW_FOV_DEG, frame_sphere, orbit
from segdream_cli.render.job import RenderJob
from segdream_cli.render.view import render
from segdream_cli.splats import Splats
from segdream_cli.splats.gaussians import Gaussians, bounds


def shell(seed: int, n: int = 400) -> Splats:
    """An opaque ellipsoid of random colours in 0..1, with three axes that differ."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(n, 3))
    means *= np.array([0.3, 0.5, 0.8]) / np.linalg.norm(means, axis=1, keepdims=True)
    values = {
        "means": means, "quats": rng.normal(size=(n, 4)), "log_scales": np.full((n, 3), -2.8),
        "opacity_logits": np.full(n, 4.0), "sh0": rng.uniform(-1.7, 1.7, (n, 3)), "shN": np.zeros((n, 0, 3)),
    }  # fmt: skip
    return Splats(**{name: value.astype(np.float32) for name, value in values.items()})


@pytest.fixture
def asset(folder):
    formats.write(folder / "one.ply", shell(1))
    return "one.ply"


@pytest.fixture
def other(folder):
    formats.write(folder / "two.splat", shell(2))
    return "two.splat"


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def view(segdream, asset, output, *options, angles="0,0", size="48"):
    done = segdream("render", asset, f"--view={angles}", "--size", size, "-o", output, "--force", *options)
    assert done.code == 0, done.err
    return pixels(output)


READABLE = [name for name, row in formats.FORMATS.items() if row.readable]


@pytest.mark.parametrize("name", READABLE)
def test_render_reads_every_format(segdream, folder, asset, name):
    path = f"asset{formats.FORMATS[name].suffix}"
    formats.write(folder / path, shell(1), name)
    shown, expected = view(segdream, path, "a.png", angles="30,10"), view(segdream, asset, "b.png", angles="30,10")
    assert np.abs(shown - expected).mean() < 2
    assert np.ptp(expected) > 100
    assert segdream("render", path, "--n-frames", "2", "--size", "32", "-o", "a.webp").code == 0


def test_turntable_closes(segdream, asset):
    assert segdream("render", asset, "--frames", "--n-frames", "6", "--size", "48", "-o", "turn").code == 0
    frames = [pixels(f"turn/frame-{i:04d}.png") for i in range(6)]
    assert not Path("turn/frame-0006.png").exists()
    for i in range(7):
        shown = view(segdream, asset, "a.png", angles=f"{i * 60},15")
        assert np.abs(shown - frames[i % 6]).max() <= 2
    assert min(np.abs(frames[i] - frames[i - 1]).mean() for i in range(6)) > 5


def test_transparent_video_defaults_to_webm(segdream, asset):
    done = segdream("render", asset, "--background", "transparent", "--n-frames", "4", "--size", "48")
    assert (done.code, done.out) == (0, "one.webm\n")
    assert b"\x53\xc0\x81\x01" in Path("one.webm").read_bytes()  # AlphaMode 1
    refused = segdream("render", asset, "--background", "transparent", "-o", "a.mp4")
    assert (refused.code, "no transparency" in refused.err, "a.webm" in refused.err) == (2, True, True)


def test_video_with_captions_has_all_frames_for_ffprobe(segdream, asset, other):
    probe = shutil.which("ffprobe")
    if probe is None:
        pytest.skip("no ffprobe on the PATH (apt-get install ffmpeg)")
    done = segdream("render", asset, other, "--n-frames", "5", "--fps", "12", "--size", "51x33", "-o", "a.mp4")
    assert done.code == 0
    entries = "stream=codec_name,profile,pix_fmt,color_space,width,height,r_frame_rate,nb_read_frames"
    command = [probe, "-v", "error", "-count_frames", "-show_entries", entries, "-of", "json", "a.mp4"]
    (said,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"]
    assert (said["codec_name"], said["profile"], said["pix_fmt"]) == ("h264", "High", "yuv420p")
    assert (said["color_space"], said["r_frame_rate"], said["nb_read_frames"]) == ("bt709", "12/1", "5")
    assert said["width"] == 102
    assert said["height"] % 2 == 0


def test_several_assets_are_side_by_side_with_their_names(segdream, asset, other):
    left, right = view(segdream, asset, "a.png", size="96"), view(segdream, other, "b.png", size="96")
    assert segdream("render", asset, other, "--view", "0,0", "--size", "96").out == "one-side-by-side-view.png\n"
    both = pixels("one-side-by-side-view.png")
    strip = len(both) - 96
    np.testing.assert_array_equal(both[strip:], np.concatenate([left, right], axis=1))
    assert strip > 8
    inked = (both[:strip] < 128).any(axis=2)
    assert inked[:, :96].sum() > 10
    assert inked[:, 96:].sum() > 10
    assert (inked[:, :96] != inked[:, 96:]).any()


@pytest.mark.parametrize(
    "options", [("--background", "transparent"), ("--channel", "normals"), ("--background", "#123")]
)
def test_captions_contrast_with_any_background(segdream, asset, other, options):
    names = ("--caption", "a yellow bus", "--caption", "größer 日本")
    done = segdream("render", asset, other, "--view", "0,0", "--size", "96", *names, *options, "-o", "a.png")
    assert done.code == 0
    both = pixels("a.png")
    strip = both[: len(both) - 96]
    assert both.shape[1:] == (192, 4 if "transparent" in options else 3)
    for half in (strip[:, :96], strip[:, 96:]):
        assert np.ptp(half[..., :3]) > 90


def test_empty_captions_leave_no_strip(segdream, asset, other):
    both = view(segdream, asset, "a.png", other, "--caption", "", "--caption", "")
    assert both.shape == (48, 96, 3)
    one = view(segdream, asset, "a.png", "--caption", "a bus")
    assert one.shape[0] > 56


def test_contact_sheet_of_two_has_a_row_for_each(segdream, asset, other):
    assert segdream("render", asset, other, "--contact-sheet", "--size", "32", "-o", "a.png").code == 0
    sheet = pixels("a.png")
    strip = len(sheet) // 2 - 32
    assert sheet.shape[1] == 8 * 32
    for row, file in enumerate((asset, other)):
        shown = view(segdream, file, "b.png", angles="90,15", size="32")
        top = row * (32 + strip) + strip
        np.testing.assert_array_equal(sheet[top : top + 32, 64:96], shown)


def test_supersampled_pixels_are_means(segdream, asset):
    large = view(segdream, asset, "a.png", size="144", angles="20,30")
    small = view(segdream, asset, "b.png", "--supersample", "3", angles="20,30")
    np.testing.assert_allclose(small, large.reshape(48, 3, 48, 3, 3).mean(axis=(1, 3)), atol=1)
    assert np.abs(small - view(segdream, asset, "c.png", angles="20,30")).mean() > 0.3


@pytest.mark.parametrize("channel", ["normals", "alpha", "depth"])
def test_supersampled_channels(segdream, asset, channel):
    fine = view(segdream, asset, "a.png", "--supersample", "2", "--channel", channel, size="64")
    plain = view(segdream, asset, "b.png", "--channel", channel, size="64")
    steps = 65534 if channel == "depth" else 255
    inside = np.s_[24:40, 28:36]
    assert np.abs(fine[inside] - plain[inside]).mean() < 0.1 * steps
    if channel == "normals":
        lengths = np.linalg.norm(fine[inside] / 255 * 2 - 1, axis=-1)
        np.testing.assert_allclose(lengths, 1, atol=0.02)


def test_wide_and_high_images_show_the_whole_asset(segdream, asset):
    square = view(segdream, asset, "a.png", size="64", angles="40,10")
    wide = view(segdream, asset, "b.png", size="128x64", angles="40,10")
    high = view(segdream, asset, "c.png", size="64x100", angles="40,10")
    assert (wide.shape, high.shape) == ((64, 128, 3), (100, 64, 3))
    np.testing.assert_allclose(wide[:, 32:96], square, atol=1)
    np.testing.assert_allclose(high[18:82], square, atol=1)


def test_depth_frames_share_one_range(segdream, asset):
    done = segdream(
        "render", asset, "--frames", "--n-frames", "4", "--size", "40", "--channel", "depth", "-o", "d", "--json"
    )
    said = json.loads(done.out)
    gaussians = Gaussians.from_splats(formats.read(Path(asset)))
    center, extent = bounds(gaussians)
    for i in range(4):
        with Image.open(f"d/frame-{i:04d}.png") as image:
            assert (float(image.info["near"]), float(image.info["far"])) == (said["near"], said["far"])
            values = np.asarray(image)
        assert values.dtype == np.uint16
        cameras = frame_sphere(torch.tensor([90.0 * i]), torch.tensor([15.0]), 40, center=center, extent=extent)
        seen = render(gaussians, cameras)
        solid = (seen.alpha > 0.5)[0, ..., 0].numpy()
        np.testing.assert_array_equal(values > 0, solid)
        back = said["near"] + (values[solid] - 1.0) / 65534 * (said["far"] - said["near"])
        expected = seen.expected_depth()[0, ..., 0].detach().numpy()[solid]
        np.testing.assert_allclose(back, expected, atol=2 * (said["far"] - said["near"]) / 65534)


def test_frames_of_a_longer_turn_are_removed(segdream, asset):
    """The last of 10,001 frames is one of them, and names that are never given are someone else's."""
    turn = ("render", asset, "--frames", "--size", "16", "-o", "d", "--force", "--n-frames")
    segdream(*turn, "5")
    for name in ("frame-of-mine.png", "frame-01000.png", "frame-10000.png"):
        Path("d", name).touch()
    segdream(*turn, "3")
    ours = {"frame-0000.png", "frame-0001.png", "frame-0002.png"}
    assert {path.name for path in Path("d").iterdir()} == {*ours, "frame-of-mine.png", "frame-01000.png"}


def test_frames_are_the_views_in_every_format(segdream, asset):
    """Each frame has the bytes of the image of its view, and the earlier frames go, whatever their format."""
    pytest.importorskip("OpenEXR")
    for suffix, channel in (("exr", "rgb"), ("exr", "depth"), ("jpg", "rgb")):
        turn = ("--frames", "--n-frames", "2", "--size", "32", "--format", suffix, "--channel", channel)
        done = segdream("render", asset, *turn, "-o", "d", "--force")
        assert done.code == 0, done.err
        assert sorted(path.name for path in Path("d").iterdir()) == [f"frame-000{i}.{suffix}" for i in range(2)]
        still = ("--view", "180,15", "--size", "32", "--channel", channel, "-o", f"{channel}.{suffix}")
        assert segdream("render", asset, *still).code == 0
        if suffix == "jpg":
            expected, found = pixels("rgb.jpg"), pixels("d/frame-0001.jpg")
        else:
            import OpenEXR

            layers = [OpenEXR.File(name).channels() for name in (f"{channel}.exr", "d/frame-0001.exr")]
            expected, found = (next(iter(each.values())).pixels for each in layers)
        np.testing.assert_allclose(found, expected, atol=1e-3)
        assert np.ptp(found) > 0.5


def test_depth_of_several_assets_shares_one_range_without_captions(segdream, asset, other):
    both = view(segdream, asset, "a.png", other, "--channel", "depth")
    assert (both.shape, both.max() > 255) == ((48, 96), True)
    refused = segdream("render", asset, "--view", "0,0", "--channel", "depth", "--caption", "a", "-o", "b.png")
    assert (refused.code, "--caption has no effect" in refused.err) == (2, True)


def poses():
    """Reference cameras that no symmetry hides a wrong sign of."""
    return orbit(torch.tensor([25.0, 140.0]), torch.tensor([30.0, -20.0]), torch.tensor([3.0, 2.0]),
                 torch.tensor([0.7, 0.7]), 64, up_tilt=torch.tensor([[0.2, 0.1, -0.1]] * 2))  # fmt: skip


def described(kind):
    """The reference cameras in the words of each kind of file."""
    fov = 0.7
    files = []
    for viewmat in poses().viewmats.double().numpy():
        rotation, position = viewmat[:3, :3].T, -viewmat[:3, :3].T @ viewmat[:3, 3]  # columns: right, down, forward
        turn = {"ours": np.eye(3), "splat-transform": np.diag([-1, 1, -1])}.get(kind, np.diag([1, -1, -1]))
        if kind == "blender":  # y up to z up, as glTF importers turn it
            turn = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])
        rotation, position = turn @ rotation, turn @ position
        opengl = np.eye(4)
        opengl[:3, :3], opengl[:3, 3] = rotation * (1, -1, -1), position
        files.append(
            {
                "ours": {"position": position, "target": position + rotation[:, 2], "up": -rotation[:, 1]},
                "splat-transform": {"position": position, "target": position + rotation[:, 2], "up": -rotation[:, 1]},
                "nerfstudio": {"camera_to_world": opengl.ravel(), "fov": math.degrees(fov), "aspect": 1},
                "nerf": {"transform_matrix": opengl, "file_path": "x"},
                "blender": {"transform_matrix": opengl * 1.0},
                "inria": {"position": position, "rotation": rotation, "height": 64, "width": 64,
                          "fy": 32 / math.tan(fov / 2), "fx": 1, "id": 0},
            }[kind]
        )  # fmt: skip
    degrees = math.degrees(fov)
    return {
        "ours": {"frames": [{**file, "fov": degrees} for file in files], "fps": 24},
        "splat-transform": {"frames": [{**file, "fov": degrees} for file in files], "frameRate": 24},
        "nerfstudio": {"camera_path": files, "fps": 24, "render_height": 64, "keyframes": []},
        "nerf": {"frames": files, "fl_y": 64 / 2 / math.tan(fov / 2), "h": 64, "w": 64},
        "blender": {"frames": files, "camera_angle_x": fov, "world": "z-up"},
        "inria": files,
    }[kind]


def written(content, path="path.json"):
    Path(path).write_text(json.dumps(content, default=lambda array: array.tolist()))
    return Path(path)


@pytest.mark.parametrize("kind", ["ours", "splat-transform", "nerfstudio", "nerf", "blender", "inria"])
def test_camera_paths_of_all_tools_give_the_same_cameras(folder, kind):
    found = read_camera_path(written(described(kind)))
    torch.testing.assert_close(found.viewmats, poses().viewmats, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.fov_rad, torch.tensor([0.7, 0.7]))
    assert found.fps == (24 if kind in ("ours", "splat-transform", "nerfstudio") else None)


def test_camera_path_shows_what_a_view_shows(segdream, asset):
    center, extent = bounds(Gaussians.from_splats(formats.read(Path(asset))))
    away = extent / (VIEW_FILL * math.sin(math.radians(VIEW_FOV_DEG) / 2))
    target = center.tolist()
    keys = [[target[0], target[1], target[2] + away], [target[0] + away, target[1], target[2]]]
    written({"frames": [{"position": key, "target": target, "fov": VIEW_FOV_DEG} for key in keys]})
    done = segdream("render", asset, "--camera-path", "path.json", "--frames", "--size", "48", "-o", "flight")
    assert (done.code, done.out) == (0, "flight\n")
    for i, angles in enumerate(("0,0", "90,0")):
        np.testing.assert_allclose(
            pixels(f"flight/frame-{i:04d}.png"), view(segdream, asset, "a.png", angles=angles), atol=2
        )
    done = segdream("render", asset, "--camera-path", "path.json", "--n-frames", "7", "--size", "32", "--json")
    said = json.loads(done.out)
    assert (said["output"], said["frames"], said["fps"], said["kind"]) == ("one-path.mp4", 7, 30, "camera path")


def test_roll_turns_the_image_against_the_camera(segdream, asset):
    key = {"position": [0, 0, 3], "target": [0, 0, 0]}
    written({"frames": [key, {**key, "roll": 90}]})
    segdream("render", asset, "--camera-path", "path.json", "--frames", "--size", "48", "-o", "flight")
    plain, rolled = (pixels(f"flight/frame-000{i}.png") for i in range(2))
    np.testing.assert_allclose(rolled, np.rot90(plain, 1), atol=2)


def square(loop):
    places = [[0, 0, 3], [3, 0.5, 0], [0, 0, -3], [-3, -0.5, 0]]
    frames = [{"position": place, "fov": fov} for place, fov in zip(places, (30, 40, 50, 40), strict=True)]
    return {"frames": frames, "loop": loop, "fps": 25}


def test_smooth_path_passes_through_its_cameras(folder):
    path = written(square(False))
    keys, smooth = read_camera_path(path), read_camera_path(path, 31)
    torch.testing.assert_close(smooth.viewmats[::10], keys.viewmats, atol=1e-5, rtol=0)
    torch.testing.assert_close(smooth.fov_rad[::10], keys.fov_rad)
    assert smooth.fps == 25
    ahead = smooth.viewmats[:, 2, 3]  # the target is the origin: its depth is the camera's distance
    assert ((ahead > 2.2) & (ahead < 3.2)).all()


def test_closed_path_returns_to_its_start(folder):
    path = written(square(True))
    smooth, twice = read_camera_path(path, 40), read_camera_path(path, 80)
    torch.testing.assert_close(smooth.viewmats[::10], read_camera_path(path).viewmats, atol=1e-5, rtol=0)
    torch.testing.assert_close(twice.viewmats[::2], smooth.viewmats)
    steps = (smooth.viewmats - smooth.viewmats.roll(1, 0)).flatten(1).norm(dim=1)
    assert steps[0] < 1.5 * steps[1:].max()
    assert steps.min() > 0.02


ONE = {"position": [0, 0, 3]}
NESTED = "[" * 100_000
BAD_PATHS = {
    "no file": (None, "no-such.json can't be read"),
    "not JSON": ("{", "is not JSON"),
    "not text": (b"\xff\xfe\x00", "is not JSON"),
    "too deep": (NESTED, "is not JSON"),
    "no frames": ({"cameras": []}, "no list of frames"),
    "frames are numbers": ({"frames": [1, 2]}, "no list of frames"),
    "a number": (7, "no list of frames"),
    "empty": ({"frames": []}, "0 frames"),
    "no position": ({"frames": [{}]}, "position in frame 0 that is not 3 numbers"),
    "two numbers": ({"frames": [ONE, {"position": [0, 1]}]}, "position in frame 1 that is not 3 numbers"),
    "words": ({"frames": [{"position": ["0", "0", "3"]}]}, "position in frame 0"),
    "ragged": ({"frames": [{"position": [[0, 0], 3]}]}, "position in frame 0"),
    "NaN": ('{"frames": [{"position": [0, NaN, 3]}]}', "position in frame 0"),
    "far": ({"frames": [{"position": [0, 0, 1e30]}]}, "position in frame 0"),
    "huge": ('{"frames": [{"position": [0, 0, 1%s]}]}' % ("0" * 400), "position in frame 0"),
    "at the target": ({"frames": [{"position": [0, 0, 0]}]}, "its position at its target in frame 0"),
    "along up": ({"frames": [{"position": [0, 3, 0]}]}, "along its up direction in frame 0"),
    "fov": ({"frames": [{**ONE, "fov": 190}]}, "field of view in frame 0"),
    "no fov": ({"frames": [{**ONE, "fov": 0}]}, "field of view in frame 0"),
    "fov is a word": ({"frames": [{**ONE, "fov": "wide"}]}, "fov in frame 0 that is not a number"),
    "a focal length of 0": ({"frames": [{**ONE, "fy": 0, "height": 9}]}, "field of view in frame 0"),
    "fps": ({"frames": [ONE], "fps": 0}, "fps 0"),
    "fps is a list": ({"frames": [ONE], "fps": [30, 1]}, "fps that is not a number"),
    "world": ({"frames": [ONE], "world": "x-up"}, "y-up, ply, playcanvas, z-up"),
    "world is a list": ({"frames": [ONE], "world": []}, "use one of y-up"),
    "matrix": ({"camera_path": [{"camera_to_world": [1, 2, 3]}]}, "camera matrix in frame 0 that is not 16 numbers"),
    "a mirror": ({"frames": [{"transform_matrix": np.diag([-1, 1, 1, 1])}]}, "not a rotation"),
    "zeros": ({"frames": [{"transform_matrix": np.zeros((4, 4))}]}, "not a rotation"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_PATHS)
def test_camera_path_errors_name_the_frame(segdream, asset, folder, case):
    content, words = BAD_PATHS[case]
    name = "no-such.json" if content is None else "path.json"
    if isinstance(content, (str, bytes)):
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    elif content is not None:
        written(content)
    before = sorted(folder.iterdir())
    done = segdream("render", asset, "--camera-path", name, "--size", "32", "-o", "a.mp4")
    assert (done.code, words in done.err) == (2, True), done.err
    assert "hint: " in done.err or content is None
    assert len(done.err) < 500
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--size", "12x512"), "--size '12x512'"),
        (("--size", "5000"), "--size '5000'"),
        (("--size", "big"), "--size 'big'"),
        (("--size", "4096", "--supersample", "4"), "8192 samples"),
        (("--supersample", "9"), "--supersample"),
        (("--caption", "a", "--caption", "b"), "2 captions for 1 asset"),
        (("--camera-path", "p.json", "--view", "0,0"), "at a time"),
        (("--camera-path", "p.json", "--contact-sheet"), "at a time"),
        (("--camera-path", "p.json", "--turntable"), "at a time"),
        (("--camera-path", "p.json", "--elevation", "3"), "--elevation has no effect"),
        (("--camera-path", "p.json", "--frames", "--elevation", "3"), "--elevation has no effect"),
        (("--camera-path", "p.json", "--frames", "--fps", "3"), "--fps has no effect"),
        (("--contact-sheet", "--background", "transparent"), "no transparency"),
        (("one.ply",) * 4 + ("--size", "4096"), "the maximum is 16382"),
    ],
)
def test_options_that_exclude_each_other_are_refused(segdream, asset, options, words):
    done = segdream("render", asset, *options)
    assert (done.code, words in done.err) == (2, True), done.err


def test_parse_size_reads_one_or_two_sides():
    assert parse_size("512") == (512, 512)
    assert parse_size(" 1280 x 720 ") == (1280, 720)


def test_depth_planes_follow_the_cameras(folder, asset):
    job = RenderJob.of([read(asset)], "cpu", 32, "depth", None)
    framed = job.assets[0]
    near, far = job.depth_range(job.turntable(5, 20.0))
    distance = framed.extent / (VIEW_FILL * math.sin(math.radians(VIEW_FOV_DEG) / 2))
    assert (near, far) == pytest.approx((distance - framed.extent, distance + framed.extent), rel=1e-4)
    written({"frames": [{"position": [0, 0, 2]}, {"position": [0, 0, 5]}, {"position": [0.0, 0, 0.1]}]})
    path = read_camera_path(Path("path.json"))
    near, far = job.depth_range(job.fixed_cameras(path.viewmats, path.fov_rad))
    assert near == pytest.approx(0.01)
    assert far == pytest.approx(5 - float(framed.center[2]) + framed.extent, rel=1e-4)


def test_shadow_darkens_the_ground_only(segdream, asset):
    for background in ("white", "transparent"):
        options = ("--background", background)
        plain, lit = (view(segdream, asset, "a.png", *options, *more, angles="30,20") for more in ((), ("--shadow",)))
        alphas = view(segdream, asset, "b.png", "--background", "transparent", angles="30,20")[..., 3]
        outside = alphas == 0
        below = outside & (np.arange(48)[:, None] > 30)
        if background == "white":
            assert (lit[outside] <= 255).all()
            assert lit[below].min() < 225 < 250 < lit[:12][outside[:12]].min()
            assert (plain[outside] == 255).all()
        else:
            assert lit[below][:, 3].max() > 40
            assert not lit[below & (lit[..., 3] > 0)][:, :3].any()  # black


def test_jpeg_and_exr_show_the_same_view(segdream, asset):
    expected = view(segdream, asset, "a.png", angles="30,20")
    assert np.abs(view(segdream, asset, "a.JPG", angles="30,20") - expected).mean() < 3
    library = pytest.importorskip("OpenEXR")
    for name, options in {"a": (), "t": ("--background", "transparent"), "d": ("--channel", "depth")}.items():
        done = segdream("render", asset, "--view=30,20", "--size", "48", "-o", f"{name}.exr", *options)
        assert (done.code, done.err) == (0, "")
    channels = {name: library.File(f"{name}.exr", separate_channels=True).channels() for name in ("a", "t", "d")}
    light = np.stack([channels["a"][name].pixels for name in "RGB"], axis=-1).astype(float)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clip(1e-9) ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(255 * encoded, expected, atol=0.8)
    assert set(channels["t"]) == set("RGBA")
    alpha = channels["t"]["A"].pixels.astype(float)
    assert (channels["t"]["R"].pixels <= alpha + 1e-3).all()
    depth = view(segdream, asset, "d.png", "--channel", "depth", angles="30,20")
    with Image.open("d.png") as image:
        near, far = float(image.info["near"]), float(image.info["far"])
    metric = np.where(depth > 0, near + (depth - 1) / 65534 * (far - near), 0)
    np.testing.assert_allclose(channels["d"]["Z"].pixels, metric, atol=1e-4)


def test_render_notes_sizes_that_differ(segdream, asset):
    options = ("--n-frames", "2", "--size", "33x47")
    assert (
        "a.mp4 has 34x48 pixels since .mp4 needs even sides" in segdream("render", asset, *options, "-o", "a.mp4").err
    )
    assert segdream("render", asset, *options, "-o", "a.mov").err == ""
    with_caption = segdream("render", asset, "--view=0,0", "--size", "48", "--caption", "a ball", "-o", "a.png")
    with Image.open("a.png") as image:
        assert f"a.png has {image.width}x{image.height} pixels with the captions" in with_caption.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--view", "0,0", "--background", "transparent", "-o", "a.jpg"), "a .jpg image has no transparency"),
        (("--view", "0,0", "-o", "a.tiff"), "a view is an image (.png, .jpg, .jpeg, .exr), and a.tiff is not"),
        (("--contact-sheet", "-o", "a.exr"), "a contact sheet is an image (.png, .jpg, .jpeg), and a.exr is not"),
        (("-o", "a.jpg"), "a turntable is a video"),
        (("--frames", "-o", "a.exr"), "-o a-frames --format exr"),
        (("--frames", "-o", "a.mp4"), "-o a-frames"),
        (("--view", "0,0", "--format", "jpg"), "--format has no effect on a view"),
        (("--frames", "--format", "jpg", "--background", "transparent"), "--format png"),
        (("--view", "0,0", "--channel", "normals", "--caption", "x", "-o", "a.exr"), "--caption has no effect"),
        (("--channel", "alpha", "--shadow", "-o", "a.mp4"), "--shadow has no effect"),
    ],
)
def test_render_refuses_other_formats(segdream, asset, folder, arguments, message):
    said = segdream("render", asset, *arguments)
    assert (said.code, message in said.err) == (2, True), said.err
    assert [path.name for path in folder.iterdir()] == [asset]

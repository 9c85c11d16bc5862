"""Text in pictures, against what was drawn and against RapidOCR as its users call it."""

import hashlib
import shutil
import socket
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw, ImageFont
from rapidocr import RapidOCR

from caption import ocr
from caption.reading import Line, rows, script
from shared.engine import LocalEngine
from shared.errors import UserError
from shared.stages import DECISIONS, Job

FONTS = Path(str(find_spec("matplotlib").origin)).parent / "mpl-data/fonts/ttf"
JAPANESE = (
    "ipag.ttf",
    "ipagp.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansJP-Regular.ttf",
    "TakaoGothic.ttf",
    "msgothic.ttc",
)
CHINESE = ("wqy-zenhei.ttc", "wqy-microhei.ttc", "NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "msyh.ttc")
WHITE = (255, 255, 255)


def font(name: str, size: int) -> Any:
    return ImageFont.truetype(str(FONTS / name), size)


def cjk(names: tuple[str, ...], size: int) -> Any:
    for name in names:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    pytest.skip("no such font on this machine")


def drawn(size: tuple[int, int], *texts: tuple[tuple[int, int], str, Any], ground: Any = WHITE) -> Image.Image:
    image = Image.new("RGB", size, ground)
    pen = ImageDraw.Draw(image)
    for place, text, face in texts:
        pen.text(place, text, "black", face)
    return image


def foggy(size: tuple[int, int]) -> Image.Image:
    """Soft colours without a line in them."""
    spots = np.random.default_rng(0).integers(120, 220, (4, 6, 3), np.uint8)
    return Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC)


def pictures() -> dict[str, Image.Image]:
    sans, serif, mono = "DejaVuSans.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSansMono-Oblique.ttf"
    faces = drawn(
        (740, 740),
        ((60, 80), "Tiny letters of a frog", font(sans, 22)),
        ((60, 180), "RIBBIT, said the frog", font(serif, 44)),
        ((60, 320), "croak croak", font(mono, 64)),
        ((60, 480), "HELLO", ImageFont.load_default(120)),
    )
    marks = drawn(
        (740, 800),
        ((440, 204), "MORNING", font(sans, 50)),
        ((60, 560), "FROGS", font(sans, 50)),
        ((60, 200), "GOOD", font(sans, 50)),
        ((180, 400), "twitter.com/froggy", font(sans, 40)),
        ((560, 764), "Rana Verde", font(sans, 18)),
    )
    fog = foggy((740, 740))
    ImageDraw.Draw(fog).text((200, 300), "on the pond", (20, 20, 90), font(sans, 48))
    return {
        "faces.png": faces,
        "marks.png": marks,
        "fog.jpg": fog,
        "blank.png": foggy((740, 740)),
        "large.png": drawn((2200, 780), ((200, 280), "A very wide banner", font(sans, 160))),
        "thin.png": Image.new("RGB", (5000, 1)),
    }


def write_corpus(folder: Path) -> None:
    folder.mkdir()
    for name, image in pictures().items():
        image.save(folder / name)
    upright = drawn((740, 800), ((100, 150), "upright again", font("DejaVuSans.ttf", 50)))
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned clockwise by 90 degrees.
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif, quality=95)
    upright.save(folder / "rejected.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "gone.png").write_bytes(b"soon deleted")


def make_job(base: Path, source: Path, cores: int = 2, **settings: Any) -> Job[Any]:
    ids = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(source.iterdir())}
    for table in "ingest", "near", "ocr":
        (base / table).mkdir(exist_ok=True)
    known = [{"image_id": image_id, "location": name, "error": None} for name, image_id in ids.items()]
    schema = pa.schema([(name, pa.string()) for name in ("image_id", "location", "error")])
    pq.write_table(pa.Table.from_pylist(known, schema), base / "ingest/part-0.parquet")
    decided = [{"image_id": image_id, "keep": name != "rejected.png"} for name, image_id in ids.items()]
    pq.write_table(pa.Table.from_pylist(decided, DECISIONS), base / "near/part-0.parquet")
    return Job(
        source=str(source),
        settings=ocr.STAGE.settings(**settings),
        folder=base / "ocr",
        tables={"ingest": base / "ingest", "near": base / "near"},
        deciders=("near",),
        engine=LocalEngine(cores),
    )


def table(job: Job[Any]) -> dict[str, dict[str, Any]]:
    """The rows by the name of the file."""
    names = {row["image_id"]: row["location"] for row in pq.read_table(job.tables["ingest"]).to_pylist()}
    parts = sorted(job.folder.glob("part-*"))
    return {names[row["image_id"]]: row for part in parts for row in pq.read_table(part).to_pylist()}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Job[Any]:
    """Two processes over all pictures."""
    base = tmp_path_factory.mktemp("ocr")
    write_corpus(base / "source")
    job = make_job(base, base / "source", shard_rows=2)
    (base / "source/gone.png").unlink()
    ocr.STAGE.run(job)
    return job


@pytest.fixture(scope="module")
def found(done) -> dict[str, dict[str, Any]]:
    return table(done)


@pytest.fixture(scope="module")
def plain() -> RapidOCR:
    return RapidOCR(params={"Global.log_level": "critical"})


def one_picture(base: Path, image: Image.Image, **settings: Any) -> dict[str, Any]:
    """The row of a picture, read in this process."""
    (base / "source").mkdir()
    image.save(base / "source/one.png")
    job = make_job(base, base / "source", cores=1, **settings)
    ocr.STAGE.run(job)
    return table(job)["one.png"]


def test_drawn_text_is_read_in_several_faces_and_sizes(found):
    expected = ["Tiny letters of a frog", "RIBBIT, said the frog", "croak croak", "HELLO"]
    assert found["faces.png"]["text"].split("\n") == expected
    assert [line["script"] for line in found["faces.png"]["texts"]] == ["latin"] * 4
    assert found["fog.jpg"]["text"] == "on the pond"
    assert found["large.png"]["text"] == "A very wide banner"


def test_the_lines_are_those_of_plain_rapidocr(done, found, plain):
    for name in ["faces.png", "large.png", "turned.jpg"]:
        expected = plain(Path(done.source) / name)
        height, width = expected.img.shape[:2]
        lines = {line["text"]: line for line in found[name]["texts"]}
        assert lines.keys() == set(expected.txts), name
        for text, confidence, box in zip(expected.txts, expected.scores, expected.boxes, strict=True):
            assert lines[text]["confidence"] == pytest.approx(confidence, abs=1e-3)
            assert np.reshape(lines[text]["box"], (4, 2)) * (width, height) == pytest.approx(np.array(box), abs=1.5)


def test_lines_are_in_reading_order(found):
    assert found["marks.png"]["text"] == "GOOD MORNING\nFROGS"
    texts = [line["text"] for line in found["marks.png"]["texts"]]
    assert texts == ["GOOD", "MORNING", "twitter.com/froggy", "FROGS", "Rana Verde"]


def test_boxes_are_of_the_upright_picture(found):
    (line,) = found["turned.jpg"]["texts"]
    assert line["text"] == "upright again"
    ink = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox((100, 150), "upright again", font("DejaVuSans.ttf", 50))
    corners = np.reshape(line["box"], (4, 2)) * (740, 800)
    expected = [[ink[0], ink[1]], [ink[2], ink[1]], [ink[2], ink[3]], [ink[0], ink[3]]]
    assert np.abs(corners - expected).max() < 15


def test_watermarks_are_told_from_text(found):
    row = found["marks.png"]
    assert row["watermark"] is True
    assert row["text"] == "GOOD MORNING\nFROGS"
    marks = {line["text"] for line in row["texts"] if line["watermark"]}
    assert marks == {"twitter.com/froggy", "Rana Verde"}
    others = [row["watermark"] for name, row in found.items() if name != "marks.png" and row["error"] is None]
    assert not any(others)


def test_a_picture_without_text(found):
    row = found["blank.png"]
    assert (row["texts"], row["text"], row["text_area"], row["watermark"]) == ([], None, 0.0, False)
    assert (row["error"], row["detail"]) == (None, None)


def test_text_area_is_that_of_the_union(found):
    for name in ["faces.png", "marks.png"]:
        mask = Image.new("L", (1000, 1000))
        for line in found[name]["texts"]:
            ImageDraw.Draw(mask).polygon([round(1000 * number) for number in line["box"]], fill=1)
        assert found[name]["text_area"] == pytest.approx(np.asarray(mask).mean(), rel=0.03)
    square, shifted = np.array([[0, 0], [4, 0], [4, 4], [0, 4]]), np.array([[2, 0], [6, 0], [6, 4], [2, 4]])
    crossed = square[[0, 2, 1, 3]]
    assert ocr.covered([square.astype(float), shifted.astype(float), crossed.astype(float)]) == 24


def test_what_cannot_be_read_is_a_row_with_a_reason(found):
    assert found.keys() == {*pictures(), "turned.jpg", "broken.png", "gone.png"}  # But not the rejected one.
    reasons = {name: row["error"] for name, row in found.items() if row["error"]}
    assert reasons == {"broken.png": "not_an_image", "gone.png": "unreadable", "thin.png": "ocr_failed"}
    for name in reasons:
        empty = [found[name][column] for column in ("texts", "text", "text_area", "watermark")]
        assert empty == [None] * 4
        assert found[name]["detail"]


def test_a_second_run_does_nothing_and_new_pictures_are_added(done, tmp_path, monkeypatch):
    base = tmp_path / "copy"
    shutil.copytree(done.folder.parent, base)
    job = make_job(base, base / "source", shard_rows=2)
    shutil.copy(done.tables["ingest"] / "part-0.parquet", base / "ingest")  # It knows gone.png.
    shutil.copy(done.tables["near"] / "part-0.parquet", base / "near")
    before = {path.name: path.stat().st_mtime_ns for path in job.folder.glob("part-*")}
    with monkeypatch.context() as patch:
        patch.setattr(ocr, "process", None)  # Calling it would fail.
        assert ocr.STAGE.run(job) == ocr.STAGE.run(done)
    assert {path.name: path.stat().st_mtime_ns for path in job.folder.glob("part-*")} == before

    (base / "source/new.png").write_bytes(b"new")
    again = make_job(base, base / "source", cores=1, shard_rows=2)
    ocr.STAGE.run(again)
    after = {path.name: path.stat().st_mtime_ns for path in job.folder.glob("part-*")}
    assert before.items() < after.items()
    new = after.keys() - before.keys()
    assert [len(pq.read_table(job.folder / name)) for name in new] == [1]


def test_the_table_belongs_to_the_package_and_its_models(tmp_path, monkeypatch):
    about = ocr.made_by()
    assert about["rapidocr"] == version("rapidocr")
    models = Path(str(find_spec("rapidocr").origin)).parent / "models"
    assert {kind for kind in ("_det_", "_rec_", "_cls_") for name in about["models"] if kind in name} == {
        "_det_", "_rec_", "_cls_",
    }  # fmt: skip
    for name, digest in about["models"].items():
        assert hashlib.sha256((models / name).read_bytes()).hexdigest().startswith(digest)
    monkeypatch.setattr(ocr, "find_lines", lambda _: [])
    one_picture(tmp_path, Image.new("RGB", (64, 64)))
    job = make_job(tmp_path, tmp_path / "source", cores=1)
    digest = ocr.STAGE.run(job)

    monkeypatch.setattr(ocr, "made_by", lambda: about | {"models": {"other.onnx": "0"}})
    assert ocr.STAGE.run(job) == digest, "what is read stays read"
    (tmp_path / "source/new.png").write_bytes(b"new")
    with pytest.raises(UserError, match=r"made with models = .*PP-OCR.*now it is \{'other\.onnx': '0'\}; use the same"):
        ocr.STAGE.run(make_job(tmp_path, tmp_path / "source", cores=1))
    for file in job.folder.iterdir():
        file.unlink()
    (tmp_path / "source/new.png").unlink()
    assert ocr.STAGE.run(make_job(tmp_path, tmp_path / "source", cores=1)) != digest, "later stages see it"


def test_an_unsure_line_is_kept_but_not_legible(tmp_path, monkeypatch):
    lines = [
        Line(text, confidence, np.array([[100, y], [400, y], [400, y + 40], [100, y + 40]], float))
        for y, text, confidence in [(100, "sure", 0.8), (200, "unsure", 0.79), (300, "A", 0.99), (400, "1234", 0.99)]
    ]
    monkeypatch.setattr(ocr, "find_lines", lambda _: lines)
    row = one_picture(tmp_path, Image.new("RGB", (600, 600)), min_confidence=0.8)
    assert row["text"] == "sure"
    assert [line["text"] for line in row["texts"]] == ["sure", "unsure", "A", "1234"]


def test_no_network_and_no_noise(tmp_path, monkeypatch, capfd):
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    ocr.reader.cache_clear()
    image = drawn((740, 740), ((100, 300), "all alone", font("DejaVuSans.ttf", 60)))
    assert one_picture(tmp_path, image)["text"] == "all alone"
    assert one_picture(tmp_path / "source", Image.new("RGB", (64, 64)))["text"] is None
    out, err = capfd.readouterr()
    assert "RapidOCR" not in out + err
    assert "onnx" not in (out + err).lower()


@pytest.mark.parametrize("module", ["rapidocr", "onnxruntime"])
def test_a_missing_package_is_said(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"ocr: .*{module}.*pip install 'illustrious-lu\[ocr\]'"):
        one_picture(tmp_path, Image.new("RGB", (64, 64)))


def test_japanese_across_and_down(tmp_path):
    across = "おはようございます"
    row = one_picture(tmp_path, drawn((740, 740), ((100, 300), across, cjk(JAPANESE, 48))))
    assert (row["text"], row["texts"][0]["script"]) == (across, "japanese")
    down = [((500, 60 + 62 * number), letter, cjk(JAPANESE, 60)) for number, letter in enumerate("大好きだよ")]
    down += [((300, 60 + 62 * number), letter, cjk(JAPANESE, 60)) for number, letter in enumerate("ありがとう")]
    (tmp_path / "down").mkdir()
    assert one_picture(tmp_path / "down", drawn((740, 740), *down))["text"] == "大好きだよ\nありがとう"


STROKES = {
    "中": "1.5,3 1.5,6.5|1.5,3 8.5,3 8.5,6.5|1.5,6.5 8.5,6.5|5,0.5 5,9.5",
    "山": "5,1 5,9|1,4 1,9 9,9|9,4 9,9",
    "田": "1,1.5 1,9|1,1.5 9,1.5 9,9|5,1.5 5,9|1,5.2 9,5.2|1,9 9,9",
    "日": "2,1 2,9|2,1 8,1 8,9|2,5 8,5|2,9 8,9",
    "本": "1,3 9,3|5,0.5 5,9.5|5,3 1,8|5,3 9,8|3.2,7.5 6.8,7.5",
    "人": "5,1 4.6,4 1,9|4.8,4 9,9",
}
"""Letters of another script, of straight lines (x,y in tenths): no machine lacks a font for them."""


def write_strokes(image: Image.Image, text: str, left: int, top: int, size: int) -> None:
    pen = ImageDraw.Draw(image)
    for place, letter in enumerate(text):
        corner = np.array([left + 1.15 * size * place, top])
        for stroke in STROKES[letter].split("|"):
            points = [corner + size / 10 * np.array(point.split(","), float) for point in stroke.split()]
            pen.line([tuple(point) for point in points], "black", size // 10, joint="curve")


def test_another_script_without_a_font(tmp_path):
    image = Image.new("RGB", (740, 740), "white")
    write_strokes(image, "日本人", 100, 150, 44)
    write_strokes(image, "中山田", 100, 400, 80)
    row = one_picture(tmp_path, image)
    assert row["text"] == "日本人\n中山田"
    assert [line["script"] for line in row["texts"]] == ["han"] * 2


def test_chinese(tmp_path):
    row = one_picture(tmp_path, drawn((740, 740), ((100, 300), "你好世界青蛙", cjk(CHINESE, 48))))
    assert (row["text"], row["texts"][0]["script"]) == ("你好世界青蛙", "han")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HELLO", "latin"),
        ("Ça va, Ñandú", "latin"),
        ("\uff26\uff32\uff2f\uff27", "latin"),
        ("おはよう世界", "japanese"),
        ("ｶｴﾙ", "japanese"),
        ("カー", "japanese"),
        ("世界", "han"),
        ("안녕", "hangul"),
        ("привет", "cyrillic"),
        ("OK 世界世界", "han"),
        ("HELLO ね", "latin"),
        ("Ελλάδα", "other"),
        ("12:30!", "other"),
        ("", "other"),
    ],
)
def test_scripts(text, expected):
    assert script(text) == expected


def line(text: str, left: float, top: float, width: float, height: float, confidence: float = 0.9) -> Line:
    corners = [[left, top], [left + width, top], [left + width, top + height], [left, top + height]]
    return Line(text, confidence, np.array(corners, float))


@pytest.mark.parametrize(
    "text",
    [
        *["pixiv", "@frog_artist", "\uff20frog", "twitter.com/frog", "WWW.FROG.DE", "frog.fanbox.cc", "patreon/frog"],
        *["SAMPLE", "frogs.com", "https:/frog", "© 2020 frog", "無断転載禁止"],
    ],
)
def test_words_of_overlays(text):
    assert line(text, 300, 450, 400, 90).is_overlay((1000, 1000), 0.7)


@pytest.mark.parametrize(
    "text", ["HELLO", "samples of sound", "Mr. Comb", "welcome", "me @ 9", "a.m.", "no.1", "Oh. Computer"]
)
def test_words_of_the_scene(text):
    assert not line(text, 300, 450, 400, 90).is_overlay((1000, 1000), 0.7)


def test_overlays_by_place():
    size = (2000, 1000)
    assert line("Rana Verde", 1700, 960, 200, 25).is_overlay(size, 0.7)
    assert line("Rana Verde", 30, 300, 25, 200).is_overlay(size, 0.7)  # Along the left border.
    assert not line("Rana Verde", 1700, 950, 200, 42).is_overlay(size, 0.7)  # Too large.
    assert not line("Rana Verde", 1700, 800, 200, 25).is_overlay(size, 0.7)  # Too far inside.
    assert not line("Rana Verde", 1700, 960, 200, 25, 0.5).is_overlay(size, 0.7)  # Whatever it is.
    assert not line("17", 1700, 960, 40, 25).is_overlay(size, 0.7)


def test_columns_are_read_from_right_to_left():
    lines = [line("left", 100, 100, 40, 300), line("right below", 500, 420, 40, 300), line("right", 505, 100, 40, 300)]
    assert [[line.text for line in row] for row in rows(lines)] == [["right", "right below"], ["left"]]
    flat = [line("b", 300, 104, 100, 30), line("a", 100, 100, 100, 30), line("c", 100, 140, 100, 30)]
    assert [[line.text for line in row] for row in rows(flat)] == [["a", "b"], ["c"]]
    assert rows([]) == []

"""Real pictures and hostile ones, where they are at hand."""

import csv

from shared.images import MAX_PIXELS


def test_illustrations(shared_data, curate):
    result = curate(shared_data / "illustrations", "ingest.shard_rows=64", workers=2)
    with (shared_data / "illustrations/metadata.csv").open(encoding="utf-8", newline="") as file:
        truth = {row["file"]: row for row in csv.DictReader(file)}
    kept, reasons = result.kept(), result.reasons()
    assert len(truth) == 409
    assert kept.keys() | reasons.keys() == truth.keys()
    assert not kept.keys() & reasons.keys()
    assert not [row for row in result.rejects() if row["stage"] == "ingest"]
    for name, row in kept.items():
        wanted = truth[name]["tags"].split(";") if truth[name]["tags"] else []
        own = [tag["name"] for tag in row["tags"]]
        assert {tag.strip().lower().replace(" ", "_") for tag in wanted} <= set(own), name
        texts = {caption["variant"]: caption["text"] for caption in row["captions"]}
        if truth[name]["caption"] and len(row["locations"]) == 1:
            assert texts["text"] == " ".join(truth[name]["caption"].split())
        if len(row["locations"]) == 1:
            assert row["image_id"] == truth[name]["sha256"]
            assert (row["width"], row["height"]) == (int(truth[name]["width"]), int(truth[name]["height"]))


def test_hostile_images(shared_data, curate):
    root = shared_data / "hostile_images"
    result = curate(root, "ingest.shard_rows=64", workers=2)
    with (root / "labels.csv").open(newline="") as file:
        labels = {row["file"]: row for row in csv.DictReader(file)}
    kept, reasons = result.kept(), result.reasons()
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert labels.keys() <= files
    assert kept.keys() | reasons.keys() == {name for name in files if not name.endswith((".json", ".txt"))}
    failed = {name for row in result.rejects() if row["stage"] == "ingest" for name in row["locations"]}
    readable = {name for name, row in labels.items() if row["pillow_load"] == "ok"}
    bombs = {name for name in failed if reasons[name] == "too_many_pixels"}
    for name in bombs & readable:
        assert float(labels[name]["width"]) * float(labels[name]["height"]) > MAX_PIXELS
    assert failed & readable - bombs == set()

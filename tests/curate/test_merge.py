"""What a keeper inherits."""

from datetime import UTC, datetime

from curate.merge import STAGE


def test_a_keeper_inherits_from_its_copies_and_their_copies(run_stage, make):
    early, late = datetime(2020, 1, 1, tzinfo=UTC), datetime(2023, 1, 1, tzinfo=UTC)
    rows = [
        make.picture(
            "a", location="z.png", width=200, tags=make.tags("smile", "miku"), rating="general", created_at=late
        ),
        make.picture("a", location="copy/of/z.png", width=200, tags=make.tags("solo"), source_url="two", post_id="7"),
        make.picture(
            "b",
            rating="explicit",
            caption="A girl.",
            created_at=early,
            tags=make.tags("miku", category="character") + make.tags("hat"),
        ),
        make.picture("c", tags=make.tags("last"), caption="Another girl.", rating="sensitive", source_url="one"),
        make.picture("d", tags=make.tags("else")),
        make.picture("e", error="undecodable", tags=make.tags("broken")),
    ]
    exact = [*make.kept("a", "b", "d"), {"image_id": "c", "keep": False, "reason": "pixel_copy", "keeper": "b"}]
    near = [*make.kept("a", "d"), {"image_id": "b", "keep": False, "reason": "near_duplicate", "keeper": "a"}]
    first, second = run_stage(STAGE, {"ingest": rows, "exact": exact, "near": near})
    assert first["image_id"] == "a"
    assert first["locations"] == ["copy/of/z.png", "z.png"]
    assert first["duplicates"] == ["b.png", "c.png"]
    assert first["width"] == 200
    # copy/of/z.png is the first of the two files with the keeper's own bytes.
    assert [tag["name"] for tag in first["tags"]] == ["solo", "smile", "miku", "hat", "last"]
    assert first["tags"][2]["category"] == "character"
    assert first["caption"] == "A girl."
    assert first["rating"] == "explicit"
    assert first["created_at"] == early
    assert first["source_urls"] == ["one", "two"]
    assert first["post_id"] == "7"
    assert (second["image_id"], second["rating"], second["duplicates"]) == ("d", None, [])

"""`make play`: what it asks of the models, and the command that it names."""

import pytest

pytest.importorskip("uvicorn", reason="the extra [play] is not installed: make play")
pytest.importorskip("starlette", reason="the extra [play] is not installed: make play")


def test_the_command_draws_with_the_same_weights():
    from stages.play.painter import command_of

    shipped = "checkpoints/scenes/config.yaml"
    assert command_of(shipped, []) == "make sample"  # as it does without CONFIG
    assert command_of(shipped, ["eval.steps=5"]) == "make sample SET=eval.steps=5"
    assert command_of(shipped, ["root=there"]) == f"make sample CONFIG={shipped} SET=root=there"
    assert command_of("my file.yaml", ["a=1", "b=x $y"]) == (
        """make sample CONFIG='my file.yaml' SET='a=1 '"'"'b=x $$y'"'"''"""
    )


@pytest.mark.parametrize(
    ("setting", "described", "drawn"),
    [("eval.steps=150", {"steps": 100, "most_steps": 1000}, 100), ("eval.sampler=ancestral", {}, 1000)],
)
def test_steps_are_bounded_and_not_offered_where_their_number_is_fixed(setting, described, drawn):
    from stages import load
    from stages.play.painter import LibraryPainter
    from stages.play.server import Stopped

    painter = LibraryPainter(load("scenes", setting, device="cpu"))
    ldm = painter.about["models"][0]
    assert {key: ldm[key] for key in ldm if "steps" in key} == described
    told = []
    with pytest.raises(Stopped):
        asked = painter.read(b'{"objects": [{"name": "red cube"}], "models": ["ldm"]}')
        painter.draw(asked, told.append, lambda: bool(told))
    assert [(one["step"], one["of"]) for one in told] == [(1, drawn)]


def test_of_many_steps_some_are_shown_with_the_first_and_the_last():
    from stages import load
    from stages.play.painter import SHOWN, LibraryPainter

    painter, told = LibraryPainter(load("scenes", device="cpu")), []
    asked = painter.read(b'{"objects": [{"name": "red cube"}], "models": ["ldm"], "steps": 30}')
    painter.draw(asked, told.append, lambda: False)
    steps = [one["step"] for one in told if one["event"] == "step"]
    assert len(steps) == SHOWN == 24 and (steps[0], steps[-1]) == (1, 30) and steps == sorted({*steps})

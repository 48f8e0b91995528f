import pytest

from stvid.data.layout import view_layout
from stvid.data.views import ViewPlan, affordable_views
from stvid.errors import ConfigError


def test_parse_and_back():
    plan = ViewPlan.parse(" 4x3 ")
    assert (plan.clips, plan.crops, plan.num_views, str(plan)) == (4, 3, 12, "4x3")
    assert ViewPlan.parse(plan) is plan
    assert ViewPlan.parse("10×3") == ViewPlan(10, 3)


@pytest.mark.parametrize("crops", [1, 3, 5, 10])
def test_names_are_one_a_view_clip_by_clip(crops):
    names = ViewPlan(2, crops).names
    assert len(set(names)) == 2 * crops
    assert all(name.startswith("clip 1 of 2") for name in names[:crops])
    assert all(name.startswith("clip 2 of 2") for name in names[crops:])


@pytest.mark.parametrize("views", ["4x2", "4x7", "0x1", "4", "x", "", "-1x3", "4x3x2"])
def test_unusable_views_are_config_errors(views):
    with pytest.raises(ConfigError, match="views"):
        ViewPlan.parse(views)


def test_unusable_numbers_are_config_errors():
    for clips in (0, 1.5, True):
        with pytest.raises(ConfigError, match="temporal clips"):
            ViewPlan(clips, 1)


def test_protocols_that_one_pass_gives_nearly_for_nothing():
    assert affordable_views("10x3", "dense") == ("1x1", "1x3", "4x1", "4x3", "5x1", "10x1")
    assert affordable_views("4x3", "dense") == ("1x1", "1x3", "4x1")
    assert affordable_views("1x1", "dense") == () and affordable_views("2x1", "dense") == ()
    assert affordable_views("1x3", "segment") == ("1x1",)
    for views in ("10x3", "4x3", "5x3", "3x10"):
        number = ViewPlan.parse(views).num_views
        assert len(view_layout([views, *affordable_views(views, "dense")], "dense").views) <= 1.25 * number

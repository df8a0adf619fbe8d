import dataclasses
import json
import re
from typing import Any

import pytest

from model_export.errors import UserError
from model_export.training.network import Autoencoder
from model_export.training.presets import PRESETS, Preset, get_preset, with_overrides
from model_export.training.stages import Matching, Stage, Weights
from service.artifact.files import NAME_PATTERN


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_a_preset_survives_json(preset: Preset) -> None:
    assert Preset.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_a_preset_can_be_built(preset: Preset) -> None:
    Autoencoder(preset.network)
    assert preset.steps == sum(stage.steps for stage in preset.stages) > 0
    assert all(-1.0 <= value <= 1.0 for value in preset.background)


def test_what_the_terms_of_a_stage_need() -> None:
    assert not Weights(imle=1.0, match=1.0, project=1.0).latents
    assert all(Weights(**{term: 0.1}).latents for term in ("distill", "idem", "tight", "settle", "critic", "drifting"))
    terms = ("distill", "settle", "critic", "code_consistency", "drifting", "features")
    assert [term for term in terms if Weights(**{term: 0.1}).teacher] == ["distill", "critic", "drifting", "features"]
    assert [term for term in terms if Weights(**{term: 0.1}).whole_batch] == ["code_consistency", "drifting"]


@pytest.mark.parametrize("name", PRESETS)
def test_names_are_those_of_models(name: str) -> None:
    assert re.fullmatch(NAME_PATTERN, name)
    assert get_preset(name).name == name


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UserError, match="no preset 'mnits'; there are avatars64, celeba64, celeba64_paper"):
        get_preset("mnits")


def test_steps_are_shared_out_in_proportion() -> None:
    whole = get_preset("fashion_mnist")
    preset = with_overrides(whole, steps=whole.steps // 40)
    assert [stage.steps for stage in whole.stages] == [4000, 3000, 2880, 2000, 2400, 320]
    assert [stage.steps for stage in preset.stages] == [99, 75, 72, 50, 60, 9]
    assert preset.steps == whole.steps // 40
    assert [stage.steps for stage in with_overrides(get_preset("tiny"), steps=3).stages] == [1, 1, 1]
    assert all(with_overrides(whole, steps=steps).steps == steps for steps in (7, 299, 300, 301, 20_000))


def test_a_stage_may_match_in_its_own_way() -> None:
    preset, wider = get_preset("mnist"), Matching(pool=32_768, pool_refresh=80)
    stages = (preset.stages[0], dataclasses.replace(preset.stages[1], matching=wider))
    preset = dataclasses.replace(preset, stages=stages)
    assert [preset.matching_of(stage).pool for stage in preset.stages] == [8192, 32_768]
    assert Preset.from_dict(preset.to_dict()) == preset


def test_checkpoints_must_fall_on_every_stages_refreshes() -> None:
    preset = get_preset("tiny")
    stage = dataclasses.replace(preset.stages[1], matching=Matching(pool_refresh=3, pairs_refresh=2))
    with pytest.raises(ValueError, match="multiple of all refresh intervals"):
        dataclasses.replace(preset, stages=(preset.stages[0], stage))


def test_other_data() -> None:
    preset = with_overrides(get_preset("mnist"), size=32, channels=3, batch=64)
    assert (preset.shape, preset.batch) == ((3, 32, 32), 64)
    assert preset.stages == get_preset("mnist").stages


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"steps": 2},
        {"batch": 0},
        {"channels": 2},
        {"size": 4},
        {"eight_bit": 1.5},
        {"corruptions": ["fog"]},
    ],
)
def test_impossible_values_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        with_overrides(get_preset("mnist"), **change)


def test_checkpoints_fall_on_refreshes() -> None:
    with pytest.raises(ValueError, match="multiple of all refresh intervals"):
        dataclasses.replace(PRESETS["tiny"], matching=Matching(pool_refresh=3))


def test_distillation_needs_a_teacher() -> None:
    with pytest.raises(ValueError, match="teacher_steps"):
        Stage(name="distill", steps=1, lr=1e-3, weights=Weights(distill=1.0))


def test_which_presets_use_terms_of_the_whole_batch() -> None:
    whole = {
        name: [stage.name for stage in preset.stages if stage.weights.whole_batch or stage.quantizer_deviation]
        for name, preset in PRESETS.items()
    }
    assert len(whole.pop("avatars64")) > 0
    assert {name: stages for name, stages in whole.items() if stages} == {
        "celeba64": ["drifting", "distill"],
        "fashion_mnist": ["drifting", "quantise", "texture"],
        "mnist": ["quantise", "texture"],
    }
    assert [name for name, preset in PRESETS.items() if preset.network.quantizer] == ["mnist", "fashion_mnist"]


def test_faces_have_the_recommended_objective_and_that_of_the_paper() -> None:
    recommended, paper = PRESETS["celeba64"], PRESETS["celeba64_paper"]
    assert (recommended.objective, paper.objective) == ("naign", "ign")
    assert (recommended.data, recommended.licence, recommended.shape) == (paper.data, paper.licence, paper.shape)
    last = recommended.stages[-1].weights
    assert (last.critic, last.drifting > 0) == (0.0, True)


@pytest.mark.parametrize("change", [{"weights": Weights(code_consistency=0.1)}, {"quantizer_deviation": 1.0}])
def test_quantiser_terms_need_a_quantiser(change: dict[str, Any]) -> None:
    preset = PRESETS["tiny"]
    stages = (dataclasses.replace(preset.stages[0], **change),)
    with pytest.raises(ValueError, match="quantizer"):
        dataclasses.replace(preset, stages=stages)
    network = dataclasses.replace(preset.network, quantizer=4)
    quantised = dataclasses.replace(preset, stages=stages, network=network)
    assert Preset.from_dict(json.loads(json.dumps(quantised.to_dict()))) == quantised


def test_corruptions_can_be_chosen() -> None:
    preset = with_overrides(get_preset("tiny"), corruptions=["noise", "hole"], eight_bit=0.25)
    assert (preset.corruptions, preset.eight_bit) == (("noise", "hole"), 0.25)
    assert with_overrides(preset).corruptions == ("noise", "hole")
    assert Preset.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset


def test_presets_of_older_versions_are_read() -> None:
    older = PRESETS["tiny"].to_dict()
    older["degradations"] = older.pop("corruptions")
    del older["eight_bit"]
    for stage in older["stages"]:
        for added in ("copy_free", "code_noise", "drift_pictures", "quantizer_deviation"):
            del stage[added]
        stage |= {"quantizer_levels": 15, "replay_buffer": None}
        stage["weights"]["replay"] = 0.0
        for added in ("code_consistency", "drifting"):
            del stage["weights"][added]
    del older["network"]["quantizer"]
    assert Preset.from_dict(older) == PRESETS["tiny"]
    del older["degradations"]
    assert Preset.from_dict(older) == PRESETS["tiny"]
    older["stages"][0]["weights"]["replay"] = 0.5  # a term that is not known any more
    with pytest.raises(TypeError):
        Preset.from_dict(older)

"""The route that lists the presets, from which a training can start."""

from __future__ import annotations

from fastapi import APIRouter

from model.config import to_dict
from model.presets import PAPER_PRESETS, PRESET_SUMMARIES, PRESETS
from service.bodies.presets import PresetBody, PresetListBody

router = APIRouter(prefix="/presets", tags=["jobs"])


@router.get("", operation_id="list_presets", summary="List configurations to train from")
def list_presets() -> PresetListBody:
    """The answer has all presets, with the whole configuration of each."""
    return PresetListBody(
        presets=[
            PresetBody(
                name=name, summary=PRESET_SUMMARIES[name], of_paper=name in PAPER_PRESETS, config=to_dict(config)
            )
            for name, config in PRESETS.items()
        ]
    )

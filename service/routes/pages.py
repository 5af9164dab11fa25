"""The web page at `/`, the calls at `/docs`, and the files both are made of: static, from the package."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).resolve().parent.parent / "web"

router = APIRouter(include_in_schema=False)
files = StaticFiles(directory=FOLDER)
"""To be mounted at `security.FILES_PREFIX`."""


@router.get("/")
def get_page() -> FileResponse:
    """Jobs, models, samples and densities, for people."""
    return FileResponse(FOLDER / "index.html")


@router.get("/docs")
def get_docs() -> FileResponse:
    """The OpenAPI document, for people."""
    return FileResponse(FOLDER / "docs.html")

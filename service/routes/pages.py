"""The web page at `/`, the description of all calls at `/docs`, and their files, which are static, in the package."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).resolve().parent.parent / "web"

router = APIRouter(include_in_schema=False)
files = StaticFiles(directory=FOLDER)
"""The files of the pages, which the application mounts at `security.FILES_PREFIX`."""


@router.get("/")
def get_page() -> FileResponse:
    """Serve the page that shows people jobs, models, samples and densities."""
    return FileResponse(FOLDER / "index.html")


@router.get("/docs")
def get_docs() -> FileResponse:
    """Serve the page that shows people the OpenAPI document."""
    return FileResponse(FOLDER / "docs.html")

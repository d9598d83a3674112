"""/docs: Swagger UI from this machine's own files, under a policy that lets no other script run.

The page's one inline script is named by its hash. Nothing is fetched from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import re

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse

router = APIRouter()

STATIC = "/static-offline-docs"
PARAMETERS = {"persistAuthorization": True, "defaultModelsExpandDepth": 0}
INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)


@router.get("/docs", include_in_schema=False)
async def swagger_ui(request: Request) -> HTMLResponse:
    """The page."""
    root = str(request.scope.get("root_path", ""))
    page = get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="LlamaFlow - Swagger UI",
        swagger_js_url=f"{root}{STATIC}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{STATIC}/swagger-ui.css",
        swagger_favicon_url=f"{root}{STATIC}/favicon.png",
        swagger_ui_parameters=PARAMETERS,
    )
    page.headers["content-security-policy"] = policy(bytes(page.body).decode())
    page.headers["cache-control"] = "no-cache"
    return page


def policy(page: str) -> str:
    """The Content-Security-Policy of a page: its own inline scripts by their hashes, files of this service, nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in INLINE.findall(page)]
    scripts = " ".join(["'self'", *(f"'sha256-{found}'" for found in hashes)])
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

"""The `demo` job: fetches the demo model, once per machine."""

from __future__ import annotations

from surgeon.core.job_context import JobContext
from surgeon.core.job_results import DemoResult
from surgeon.core.jobs import DemoJob
from surgeon.demo.fetching import fetch_demo


def demo_job(request: DemoJob, job: JobContext) -> DemoResult:
    """Perform a `demo` job."""
    del request
    return DemoResult(path=str(fetch_demo(job)))

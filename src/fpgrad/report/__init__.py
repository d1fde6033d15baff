"""Reports: plain records in, text out."""

from fpgrad.report.summary import (
    LayerRow,
    MemoryUse,
    Needs,
    Phase,
    StepSummary,
    render,
)

__all__ = ["LayerRow", "MemoryUse", "Needs", "Phase", "StepSummary", "render"]

"""All planted faults. Main entry: `FAULTS`."""

from __future__ import annotations

from tests.faults import answer_faults, decoding_faults, leak_faults, span_faults

FAULTS = [*span_faults.FAULTS, *leak_faults.FAULTS, *decoding_faults.FAULTS, *answer_faults.FAULTS]

"""What a run is doing, since when, what was lost, why, and what to set next. Curves and verdicts in, words out; no
torch.

`diagnose` puts together, at a look or at the end: `curves` (what the losses show), `states` (which state that is),
`onset` (since when), `knowledge` (knowledge or format) and `causes` (why, and the next setting).
"""

from backslide.diagnosis.causes import Cause
from backslide.diagnosis.curves import Losses, losses_of
from backslide.diagnosis.knowledge import Knowledge, compare
from backslide.diagnosis.onset import Onset
from backslide.diagnosis.run import Diagnosis, diagnose

__all__ = ["Cause", "Diagnosis", "Knowledge", "Losses", "Onset", "compare", "diagnose", "losses_of"]

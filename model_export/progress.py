"""Progress bars."""

import sys
from functools import partial

from tqdm import tqdm

# A file keeps every bar that is drawn.
_INTERVAL = 1.0 if sys.stderr.isatty() else 60.0
progress = partial(tqdm, mininterval=_INTERVAL, maxinterval=_INTERVAL)

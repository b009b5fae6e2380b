"""What people see: calm text on stderr while it works, results on stdout. Knows records, no torch, and decides nothing.

On a terminal Rich colours it and folds it to the window; in a pipe the same lines come plain and are never folded. The
pages of `inspect FILE`, `diff`, `doctor`, `lock` and `validate` have rooms of their own here.
"""

from __future__ import annotations

from .conversion import checks_table as checks_table
from .conversion import inspection as inspection
from .conversion import plan as plan
from .conversion import saved as saved
from .conversion import summary as summary
from .lists import contract as contract
from .lists import models as models
from .lists import scheme as scheme
from .lists import schemes as schemes
from .lists import verification as verification
from .screen import Screen as Screen
from .screen import checksum_line as checksum_line
from .screen import error as error
from .screen import facts_table as facts_table
from .screen import size as size
from .screen import table_of as table_of

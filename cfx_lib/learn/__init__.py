"""What only notebooks use: exercises, source listings, figures, widgets and the notebook build.

`from cfx_lib.learn import exercise, show, plots, widgets` is the usual first line of a notebook. `plots`
and `widgets` are imported on demand, so that the notebook build needs neither matplotlib nor ipywidgets.
"""

from cfx_lib.learn.exercise import exercise, hint, progress, solution
from cfx_lib.learn.mode import mode
from cfx_lib.learn.show import say, show

__all__ = ["exercise", "hint", "mode", "progress", "say", "show", "solution"]

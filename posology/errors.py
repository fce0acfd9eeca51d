"""The one exception a user is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can fix: the command line prints it in one line and exits with 2.

    The message says where it happened, what was found against what was expected, and how to mend it.
    It never quotes note text: identifiers, column names, labels and positions only.

    Args:
        problem: what was found and what was expected, without a closing full stop.
        mend: what the user can do about it, as an imperative sentence without a closing full stop.
        place: file, `file:line`, `file, row N` or an option name; omitted where there is no place.
    """

    def __init__(self, problem: str, mend: str, place: object = None):
        self.problem, self.mend, self.place = problem, mend, place
        prefix = f"{place}: " if place is not None else ""
        super().__init__(f"{prefix}{problem}. {mend}.")


class Interrupted(KeyboardInterrupt):
    """The user stopped the work and what was reached so far has been saved (exit 130).

    Args:
        saved: one sentence saying what was kept and where.
    """

    def __init__(self, saved: str):
        self.saved = saved
        super().__init__(saved)

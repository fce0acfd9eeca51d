"""`posology synthesise`: a hospital that never was, in the formats of MIMIC-III and of i2b2 2010, 2012 and 2014."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from posology import __version__
from posology.console import progress, say
from posology.errors import UserError
from posology.files import check_free, staged_folder, write_json
from posology.synthetic import MARKER
from posology.synthetic.cast import Sizes, sizes_2010, sizes_2012, sizes_2014
from posology.synthetic.hospital import Patient, make_hospital
from posology.synthetic.i2b2 import write_2010, write_2012, write_2014
from posology.synthetic.mimic import write_mimic
from posology.synthetic.mimic_tables import write_notes_for

FEWEST = 20
_BYTES_PER_PATIENT, _BYTES_PER_RECORD = 10_000, 60_000

_TREES = {
    "i2b2-2010": (write_2010, sizes_2010),
    "i2b2-2012": (write_2012, sizes_2012),
    "i2b2-2014": (write_2014, sizes_2014),
}


def synthesise(
    *, out: Path, patients: int = 1000, seed: int = 7, tables: Path | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Writes a synthetic hospital: `mimic-iii`, `i2b2-2010`, `i2b2-2012` and `i2b2-2014`, all with labels.

    Nothing in it comes from real notes. The numbers of i2b2 records grow with the patients up to those of the real
    corpora: one of 2010 for four patients (at most 426), one of 2012 for five (310), two of 2014 for three (1,304), but
    never fewer than 20. Training and test records are about different patients, in the real proportions.

    Args:
        out: the folder to write; must be new or empty.
        patients: how many there are, 20 or more; with fewer than about 50, splits of the MIMIC tasks may be empty.
        seed: of everything that is drawn; the same seed and number give the same files.
        tables: a folder with the tables of MIMIC-III, such as its demo, that lack notes; then only `mimic-iii` is
            written: these tables, with notes made up for their admissions. `patients` does not count then.
        overwrite: replace `out`.
    """
    out = Path(out)
    if tables is None and patients < FEWEST:
        raise UserError(f"{patients} patients are too few for all splits", f"Ask for {FEWEST} or more", "--patients")
    if tables is not None and not Path(tables).is_dir():
        raise UserError("there is no such folder", "Name the folder with ADMISSIONS, PATIENTS and the others", tables)
    check_free(out, marker=MARKER, overwrite=overwrite)
    about: dict[str, Any] = {"version": __version__, "seed": seed}
    sizes = {part: size(patients) for part, (_, size) in _TREES.items()}
    records = sum(sum(size) for size in sizes.values())
    needs = 0 if tables is not None else patients * _BYTES_PER_PATIENT + records * _BYTES_PER_RECORD
    with staged_folder(out, marker=MARKER, needs_bytes=needs, overwrite=overwrite) as staging:
        if tables is not None:
            counts = {"mimic-iii": write_notes_for(Path(tables), staging / "mimic-iii", seed)}
            about |= {"tables": Path(tables).resolve().name, "counts": counts}
        else:
            about |= {"patients": patients, "counts": _write_all(staging, patients, seed, sizes)}
        write_json(staging / MARKER, about)
    for part, numbers in about["counts"].items():
        say(f"{part}: " + ", ".join(f"{number:,} {what.replace('_', ' ')}" for what, number in numbers.items()))
    return {"out": str(out), **about}


def _write_all(folder: Path, patients: int, seed: int, sizes: Mapping[str, Sizes]) -> dict[str, dict[str, int]]:
    """Writes the four parts and counts what is in them."""
    with progress("Writing", patients + sum(sum(size) for size in sizes.values())) as advance:
        hospital = _counted(make_hospital(patients, seed), advance)
        counts = {"mimic-iii": write_mimic(hospital, folder / "mimic-iii", seed)}
        for part, (write, _) in _TREES.items():
            counts[part] = write(make_hospital(patients, seed), folder / part, sizes[part], seed, advance)
    return counts


def _counted(patients: Iterable[Patient], advance: Callable[..., None]) -> Iterator[Patient]:
    for patient in patients:
        yield patient
        advance()

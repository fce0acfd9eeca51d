"""The synthetic hospital: patients, notes and labels that never were."""

MARKER = "synthetic.json"
"""The file that tells a synthetic hospital from data of patients, in the folder that holds its trees."""

from posology.engine import process

process.prepare()

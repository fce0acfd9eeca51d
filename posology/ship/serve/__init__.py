"""`posology serve`: many adapters over one backbone, behind HTTP.

request ── app ── fleet: texts to windows ──┐                       ┌── fleet: logits to answers ── response
request ── app ── fleet: texts to windows ──┴── batching: one row ──┴── fleet: logits to answers ── response
                                                 sharing: its layers, each token with the adapter of its request
"""

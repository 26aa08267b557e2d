"""The trained classifier on disk: model.safetensors and octfast.json, no pickle.

From outside: `build`, `carry`, `info`, `read`, `write`, `show`, `state`, `distance`.
"""

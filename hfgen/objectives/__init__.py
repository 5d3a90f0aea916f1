"""What is minimised. Each objective is hyperparameters plus a pure call that is handed the
models.
"""

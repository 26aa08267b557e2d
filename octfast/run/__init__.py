"""The run folder as a record on disk, read without torch and fastai."""

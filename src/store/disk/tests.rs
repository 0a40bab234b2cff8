//! Disk, tail and folding against a model.

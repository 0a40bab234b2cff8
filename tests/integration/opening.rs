//! Opening files: ours, others', and those that are open already.

//! A job with `EVAL_ONCE_STEP` on an agent whose own command hook we are: what is built, and the step's own command after it.

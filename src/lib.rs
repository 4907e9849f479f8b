//! eval-once.

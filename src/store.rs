//! Asking Nix: running its commands ([`crate::nix::command`]), and what is wrong where one fails. Each question stands here once.

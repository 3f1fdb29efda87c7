//! Many runs from one grid of settings.

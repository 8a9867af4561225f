//! Real images, compared with what umoci unpacks.

//! Numbers that are never handed out twice: spaces of blocks with one owner each

//! Services, virtual addresses and the choice of a backend

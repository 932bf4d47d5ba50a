//! Who is there and what they said: membership and replicated records

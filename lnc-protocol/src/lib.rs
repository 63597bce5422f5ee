//! LWP, the Lance Wire Protocol: frames, requests, responses, record batches
#![forbid(unsafe_code)]

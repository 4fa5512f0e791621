// Package conformance holds Gatehouse against the real programs that it stands beside. Its tests need them, and the build
// tag conformance: make conformance.
package conformance

// Package siddhi holds the SiddhiQL engine of Gatehouse against the real one: random policies and random histories go through
// both, on the playback clock of the real engine, and must give the same rows in the same order. Its tests need java, mvn and
// the build tag conformance: make conformance.
package siddhi

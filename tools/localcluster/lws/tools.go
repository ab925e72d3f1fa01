//go:build tools

// Package tools names the program that is built of another module.
package tools

import _ "sigs.k8s.io/lws/cmd"

package basic

import (
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // the form of Microgateway 3.2
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// Hash is a password hash of the configuration, taken apart.
type Hash interface {
	// verify compares in a time that does not depend on where they differ.
	verify(password string) bool
	// slow is whether the computation is made to cost much.
	slow() bool
	// cost orders hashes by about how long they take.
	cost() float64
	// decoy is a hash of the same cost that no password has.
	decoy() Hash
}

// ParseHash reads a password hash: bcrypt ($2a$…, $2b$…, $2y$…), argon2id ($argon2id$v=19$m=…,t=…,p=…$salt$hash), and the
// forms of Microgateway: a SHA-1 in hex, @sha256:{hex}, @sha384:{hex}, @sha512:{hex}, the braces included or not. The
// error says what is wrong and what would be right, and holds nothing of the hash.
func ParseHash(text string) (Hash, error) {
	switch {
	case text == "":
		return nil, errors.New("no password hash: write bcrypt ($2b$...) or argon2id ($argon2id$...)")
	case strings.HasPrefix(text, "$2a$"), strings.HasPrefix(text, "$2b$"), strings.HasPrefix(text, "$2y$"):
		return parseBcrypt(text)
	case strings.HasPrefix(text, "$argon2id$"):
		return parseArgon2(text)
	case strings.HasPrefix(text, "$argon2"):
		return nil, errors.New("a form of argon2 that is not supported: write argon2id ($argon2id$v=19$m=65536,t=3,p=4$salt$hash)")
	case strings.HasPrefix(text, "@"):
		name, rest, ok := strings.Cut(text[1:], ":")
		size := map[string]int{"sha256": sha256.Size, "sha384": sha512.Size384, "sha512": sha512.Size}[name]
		if !ok || size == 0 {
			return nil, errors.New("an unknown form of hash: write @sha256:{hex}, @sha384:{hex} or @sha512:{hex}")
		}
		return parseDigest("@"+name, braced(rest), size)
	case len(braced(text)) == 2*sha1.Size:
		return parseDigest("SHA-1", braced(text), sha1.Size)
	}
	return nil, errors.New("not a password hash: write bcrypt ($2b$...), argon2id ($argon2id$...), or Microgateway's @sha256:{hex}, @sha512:{hex} or a SHA-1 of 40 hex digits")
}

// braced takes the braces of Microgateway's forms away.
func braced(text string) string {
	if inner, ok := strings.CutPrefix(text, "{"); ok {
		if inner, ok = strings.CutSuffix(inner, "}"); ok {
			return inner
		}
	}
	return text
}

// digest is a plain hash, told by its size.
type digest struct{ sum []byte }

func parseDigest(form, text string, size int) (Hash, error) {
	sum, err := hex.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("the %s hash is not hex: write %d hex digits", form, 2*size)
	}
	if len(sum) != size {
		return nil, fmt.Errorf("the %s hash has %d hex digits: write %d", form, len(text), 2*size)
	}
	return digest{sum}, nil
}

func (d digest) verify(password string) bool {
	var sum []byte
	switch len(d.sum) {
	case sha256.Size:
		s := sha256.Sum256([]byte(password))
		sum = s[:]
	case sha512.Size384:
		s := sha512.Sum384([]byte(password))
		sum = s[:]
	case sha512.Size:
		s := sha512.Sum512([]byte(password))
		sum = s[:]
	default:
		s := sha1.Sum([]byte(password)) //nolint:gosec // the form of Microgateway 3.2
		sum = s[:]
	}
	return subtle.ConstantTimeCompare(sum, d.sum) == 1
}

func (digest) slow() bool    { return false }
func (digest) cost() float64 { return 0 }

func (d digest) decoy() Hash {
	sum := make([]byte, max(len(d.sum), sha1.Size))
	_, _ = rand.Read(sum)
	return digest{sum}
}

// bcryptHash is a hash in bcrypt's own form.
type bcryptHash struct {
	text []byte
	work int
}

const (
	bcryptLength = 60
	// maxBcryptWork is the largest work factor that is accepted: one check takes about four seconds.
	maxBcryptWork = 16
)

func parseBcrypt(text string) (Hash, error) {
	work, err := bcrypt.Cost([]byte(text))
	switch {
	case err != nil || len(text) != bcryptLength:
		return nil, fmt.Errorf("not a whole bcrypt hash: write its %d characters, such as $2b$10$ and 53 more", bcryptLength)
	case strings.Trim(text[7:], "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") != "":
		return nil, errors.New("a bcrypt hash with characters that none has: write it as the tool printed it")
	case work > maxBcryptWork:
		return nil, fmt.Errorf("a bcrypt hash of work factor %d, which takes too long for each request: write one of at most %d", work, maxBcryptWork)
	}
	// The library knows 2a, 2b and 2y as one.
	return bcryptHash{[]byte(text), work}, nil
}

func (h bcryptHash) verify(password string) bool {
	return bcrypt.CompareHashAndPassword(h.text, []byte(password)) == nil
}

func (bcryptHash) slow() bool      { return true }
func (h bcryptHash) cost() float64 { return float64(uint64(1)<<h.work) * 50e3 }

func (h bcryptHash) decoy() Hash {
	// The salt and the sum of the hash, changed: no password is known that has it.
	random := make([]byte, 40)
	_, _ = rand.Read(random)
	const alphabet = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	text := []byte(string(h.text))
	for i := range 30 {
		text[29+i] = alphabet[random[i]%64]
	}
	return bcryptHash{text, h.work}
}

// argon2Hash is argon2id with its parameters.
type argon2Hash struct {
	memory, time uint32
	threads      uint8
	salt, sum    []byte
}

// Bounds of argon2id: what one check may take.
const (
	maxArgon2Memory = 256 << 10 // KiB
	maxArgon2Time   = 16
	argon2Example   = "$argon2id$v=19$m=65536,t=3,p=4$salt$hash"
)

func parseArgon2(text string) (Hash, error) {
	parts := strings.Split(text, "$") // "", argon2id, v, parameters, salt, hash
	if len(parts) != 6 || parts[2] != "v=19" {
		return nil, errors.New("not a whole argon2id hash of version 19: write " + argon2Example)
	}
	var h argon2Hash
	seen := 0
	for p := range strings.SplitSeq(parts[3], ",") {
		name, value, _ := strings.Cut(p, "=")
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return nil, errors.New("argon2id parameters that are not numbers: write " + argon2Example)
		}
		switch {
		case name == "m" && n >= 8 && n <= maxArgon2Memory:
			h.memory, seen = uint32(n), seen|1
		case name == "t" && n >= 1 && n <= maxArgon2Time:
			h.time, seen = uint32(n), seen|2
		case name == "p" && n >= 1 && n <= 255:
			h.threads, seen = uint8(n), seen|4
		default:
			return nil, fmt.Errorf("an argon2id parameter %s that is not accepted: write m of 8 to %d, t of 1 to %d, p of 1 to 255", strconv.Quote(name), maxArgon2Memory, maxArgon2Time)
		}
	}
	var err1, err2 error
	h.salt, err1 = base64.RawStdEncoding.DecodeString(parts[4])
	h.sum, err2 = base64.RawStdEncoding.DecodeString(parts[5])
	switch {
	case seen != 7:
		return nil, errors.New("an argon2id hash that lacks one of m, t and p: write " + argon2Example)
	case err1 != nil || err2 != nil:
		return nil, errors.New("an argon2id salt or hash that is not base64 without padding: write " + argon2Example)
	case len(h.salt) < 8 || len(h.salt) > 64 || len(h.sum) < 16 || len(h.sum) > 128:
		return nil, errors.New("an argon2id hash of an odd size: write a salt of 8 to 64 bytes and a hash of 16 to 128")
	}
	return h, nil
}

func (h argon2Hash) verify(password string) bool {
	sum := argon2.IDKey([]byte(password), h.salt, h.time, h.memory, h.threads, uint32(len(h.sum)))
	return subtle.ConstantTimeCompare(sum, h.sum) == 1
}

func (argon2Hash) slow() bool      { return true }
func (h argon2Hash) cost() float64 { return float64(h.memory) * float64(h.time) * 1000 }

func (h argon2Hash) decoy() Hash {
	h.sum = make([]byte, len(h.sum))
	_, _ = rand.Read(h.sum)
	return h
}

// Who is there: an RS256 token, checked against one public key (PUBLIC_KEY is its PEM file).

import { createPublicKey } from 'node:crypto'
import { readFileSync } from 'node:fs'
import jwt from 'jsonwebtoken'

const key = createPublicKey(readFileSync(process.env.PUBLIC_KEY))
const options = { algorithms: ['RS256'], issuer: process.env.ISSUER, audience: process.env.AUDIENCE }

/** The user's id; throws when the token is not accepted. */
export const verify = (token) => jwt.verify(token, key, options).sub
